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
if(MY_OPS_SANITIZER)
  string(REPLACE ";" "," _sanitizers "${MY_OPS_SANITIZER}")
  target_compile_options(my_ops_flags INTERFACE
                         $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${_sanitizers} -fno-omit-frame-pointer -g>)
  target_link_options(my_ops_flags INTERFACE -fsanitize=${_sanitizers})
endif()
