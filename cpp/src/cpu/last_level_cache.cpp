#include "cpu/last_level_cache.h"

#include <unistd.h>

#include <fstream>

namespace my_ops::cpu {
namespace {

/// "32768K" in bytes; 0 for what is not a size.
int64_t bytes_of(std::istream& in) {
  int64_t n = 0;
  char unit = ' ';
  in >> n >> unit;
  if (unit == 'K') return n << 10;
  return unit == 'M' ? n << 20 : 0;
}

int64_t from_folder(const std::string& folder) {
  int64_t highest = 3;
  int64_t found = 0;
  for (int index = 0;; ++index) {
    const std::string cache = folder + "/index" + std::to_string(index);
    std::ifstream level_file(cache + "/level");
    std::ifstream size_file(cache + "/size");
    int64_t level = 0;
    if (!(level_file >> level)) return found;
    const int64_t bytes = bytes_of(size_file);
    if (level < highest || bytes == 0) continue;
    highest = level;
    found = bytes;
  }
}

int64_t from_glibc() {
#if defined(_SC_LEVEL3_CACHE_SIZE)
  return sysconf(_SC_LEVEL3_CACHE_SIZE);
#else
  return 0;
#endif
}

}  // namespace

int64_t last_level_cache(const std::string& folder) {
  if (const int64_t bytes = from_folder(folder); bytes > 0) return bytes;
  const int64_t bytes = from_glibc();
  return bytes > 0 ? bytes : int64_t{32} << 20;
}

}  // namespace my_ops::cpu
