# Stops with one sentence when the compiler cannot build the sources, instead of a page of template errors.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 11)
  message(FATAL_ERROR "my_ops needs C++20 from g++ 11 or newer, found ${CMAKE_CXX_COMPILER_VERSION}: "
                      "install a newer g++ and set CXX to it.")
elseif(CMAKE_CXX_COMPILER_ID MATCHES "Clang" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 14)
  message(FATAL_ERROR "my_ops needs C++20 from clang 14 or newer, found ${CMAKE_CXX_COMPILER_VERSION}: "
                      "install a newer clang and set CXX to it.")
elseif(NOT CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
  message(FATAL_ERROR "my_ops uses the vector types of g++ and clang, found ${CMAKE_CXX_COMPILER_ID}: set CXX to one of them.")
endif()

add_library(my_ops_flags INTERFACE)
target_compile_options(my_ops_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wno-unused-parameter -Wno-psabi>)

# MY_OPS_WITH_AVX2 and the like, for who chooses among the kernels.
list(TRANSFORM MY_OPS_INSTRUCTION_SETS TOUPPER OUTPUT_VARIABLE MY_OPS_SIMD_DEFINITIONS)
list(TRANSFORM MY_OPS_SIMD_DEFINITIONS PREPEND MY_OPS_WITH_)

# Builds that watch what the library does: hardly optimised, since they take most of their time to compile.
set(MY_OPS_SIMD_OPTIMIZATION -O3)
if(MY_OPS_SANITIZER)
  string(REPLACE ";" "," _sanitizers "-fsanitize=${MY_OPS_SANITIZER}")
  target_compile_options(my_ops_flags INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:${_sanitizers};-fno-sanitize-recover=all;\
-fno-omit-frame-pointer;-D_GLIBCXX_ASSERTIONS;-g1;-O1>")
  target_link_options(my_ops_flags INTERFACE ${_sanitizers})
endif()
if(MY_OPS_COVERAGE)
  target_compile_options(my_ops_flags INTERFACE
                         "$<$<COMPILE_LANGUAGE:CXX>:--coverage;-fprofile-update=atomic;-fprofile-abs-path;-O1>")
  target_link_options(my_ops_flags INTERFACE --coverage)
endif()
if(MY_OPS_SANITIZER OR MY_OPS_COVERAGE)
  set(MY_OPS_SIMD_OPTIMIZATION -O1)
endif()
