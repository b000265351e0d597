#include "my_ops/info.h"

#include "cpu/capability.h"
#include "cpu/elements.h"
#include "cpu/last_level_cache.h"
#include "my_ops/version.h"

namespace my_ops {

std::string cpu_capability() { return cpu::name(cpu::capability()); }

std::string build_info() {
  const std::string cuda = MY_OPS_CUDA_VERSION;
  return std::string("{\"version\": \"") + MY_OPS_VERSION + "\", \"torch\": \"" + MY_OPS_TORCH_VERSION +
         "\", \"cuda\": " + (cuda.empty() ? "null" : "\"" + cuda + "\"") + ", \"compiler\": \"" + MY_OPS_COMPILER +
         "\", \"cpu_capability\": \"" + cpu_capability() +
         "\", \"last_level_cache\": " + std::to_string(cpu::last_level_cache()) +
         ", \"cached_bytes\": " + std::to_string(cpu::cached_bytes()) + "}";
}

}  // namespace my_ops
