# my_ops_add_torch(TARGET FOLDER): an imported target with the headers and libraries of the torch in FOLDER, which is a
# libtorch or the folder of Python's package torch.
#
# torch's own TorchConfig.cmake wants a complete CUDA toolkit as soon as torch was built with CUDA; this works alike for
# the CPU and the CUDA build, with or without a toolkit. my_ops itself is built so, and its package can be used so.
function(my_ops_add_torch target folder)
  add_library(${target} INTERFACE IMPORTED)
  target_include_directories(${target} SYSTEM INTERFACE "${folder}/include"
                                                        "${folder}/include/torch/csrc/api/include")
  foreach(library torch torch_cpu c10)
    target_link_libraries(${target} INTERFACE "${folder}/lib/lib${library}.so")
  endforeach()

  # at::parallel_for is a template over OpenMP pragmas. Link the very runtime that torch ships: a second one would be a
  # second thread pool, spinning against the first.
  file(GLOB gomp "${folder}/lib/libgomp*.so*" "${folder}/../torch.libs/libgomp*.so*" "${folder}/lib/libiomp5.so")
  if(gomp)
    list(GET gomp 0 gomp)
    target_compile_options(${target} INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fopenmp>)
    target_link_libraries(${target} INTERFACE "${gomp}")
  else()
    find_package(OpenMP REQUIRED COMPONENTS CXX)
    target_link_libraries(${target} INTERFACE OpenMP::OpenMP_CXX)
  endif()
endfunction()
