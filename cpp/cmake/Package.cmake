# What gets installed: headers, the library, and the CMake package that finds both, in one layout wherever it lies.
#
#   cmake --install BUILD --prefix PREFIX   PREFIX/include/my_ops, PREFIX/lib, PREFIX/lib/cmake/my_ops
#   component python                        the same below my_ops/, for the root of a wheel
#
# The folder can be moved: its CMake package looks for the rest relative to itself.
include(CMakePackageConfigHelpers)
set(_package "${CMAKE_CURRENT_BINARY_DIR}/package")
configure_file(cmake/my_opsConfig.cmake.in "${_package}/my_opsConfig.cmake" @ONLY)
write_basic_package_version_file("${_package}/my_opsConfigVersion.cmake" COMPATIBILITY SameMinorVersion)

# Where the library looks for torch, and for the CUDA runtime that torch's wheels bring, if it is loaded before them:
# in a wheel beside its own package, else where they are now.
if(SKBUILD)
  set(_packages "$ORIGIN/../..")
else()
  set(_packages "${MY_OPS_TORCH_DIR}/..")
endif()
set(_rpath "${_packages}/torch/lib")
if(MY_OPS_WITH_CUDA)
  list(APPEND _rpath "${_packages}/nvidia/cu${CUDAToolkit_VERSION_MAJOR}/lib")
endif()
set_target_properties(my_ops PROPERTIES INSTALL_RPATH "${_rpath}")

function(my_ops_install root)
  install(TARGETS my_ops LIBRARY DESTINATION "${root}lib" ${ARGN})
  install(DIRECTORY include/my_ops "${CMAKE_CURRENT_BINARY_DIR}/include/my_ops" DESTINATION "${root}include" ${ARGN}
          FILES_MATCHING PATTERN "*.h")
  install(FILES "${_package}/my_opsConfig.cmake" "${_package}/my_opsConfigVersion.cmake" cmake/TorchFolder.cmake
          DESTINATION "${root}lib/cmake/my_ops" ${ARGN})
endfunction()
my_ops_install("" COMPONENT cpp)
my_ops_install("my_ops/" COMPONENT python EXCLUDE_FROM_ALL)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/build_info.json" DESTINATION my_ops/lib COMPONENT python EXCLUDE_FROM_ALL)
