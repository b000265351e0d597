// Which cache decides what is written past it.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "cpu/last_level_cache.h"

namespace {

using my_ops::cpu::last_level_cache;

/// A folder like Linux's, with a cache per call of add().
class LastLevelCache : public testing::Test {
 protected:
  LastLevelCache() : folder_(std::filesystem::temp_directory_path() / ("my_ops_caches_" + std::to_string(getpid()))) {
    std::filesystem::create_directories(folder_);
  }
  ~LastLevelCache() override { std::filesystem::remove_all(folder_); }

  void add(const std::string& level, const std::string& size) {
    const auto cache = folder_ / ("index" + std::to_string(count_++));
    std::filesystem::create_directory(cache);
    std::ofstream(cache / "level") << level << "\n";
    std::ofstream(cache / "size") << size << "\n";
  }
  int64_t found() const { return last_level_cache(folder_.string()); }

 private:
  std::filesystem::path folder_;
  int count_ = 0;
};

TEST_F(LastLevelCache, IsTheHighestLevel) {
  add("1", "32K");
  add("1", "32K");
  add("2", "1024K");
  EXPECT_GT(found(), 1 << 20) << "the last level is hidden, not missing";
  add("3", "16384K");
  EXPECT_EQ(found(), 16 << 20);
  add("4", "131072K");
  EXPECT_EQ(found(), 128 << 20);
}

TEST_F(LastLevelCache, IsFoundInAnyOrderAndUnit) {
  add("3", "48M");
  add("2", "1280K");
  EXPECT_EQ(found(), 48 << 20);
}

/// Not what other levels hold, and not glibc's answer where that is another.
TEST_F(LastLevelCache, OfThisMachineIsWhatLinuxSays) {
  std::ifstream size("/sys/devices/system/cpu/cpu0/cache/index3/size");
  int64_t kilobytes = 0;
  if (!(size >> kilobytes)) GTEST_SKIP() << "no such file here";
  EXPECT_EQ(last_level_cache(), kilobytes << 10);
}

TEST_F(LastLevelCache, IsPositiveWhereNothingIsKnown) {
  EXPECT_GT(found(), 0);
  add("3", "large");
  EXPECT_GT(found(), 0);
}

}  // namespace
