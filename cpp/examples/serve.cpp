// Runs a model file on inputs from a file: TorchScript (.pt) or an AOTInductor package (.pt2).
//
//   serve MODEL INPUTS OUTPUTS [LIBRARY]
//
// INPUTS: a list of tensors by torch.save; the model runs on each. OUTPUTS: their results, for torch.load. LIBRARY: the
// libmy_ops.so with the model's operators. A program for models of my_ops alone links my_ops::my_ops instead.
#include <ATen/core/grad_mode.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>

#include <exception>
#include <functional>
#include <iostream>
#include <memory>

#include "files.h"

using Model = std::function<at::Tensor(const at::Tensor&)>;

Model load(const std::string& path) {
  if (path.ends_with(".pt2")) {
    auto package = std::make_shared<torch::inductor::AOTIModelPackageLoader>(path);
    return [package](const at::Tensor& input) { return package->run({input}).at(0); };
  }
  torch::jit::Module module = torch::jit::load(path);
  module.eval();
  return [module](const at::Tensor& input) mutable { return module.forward({input}).toTensor(); };
}

// torch names an operator that nobody registered; which library brings it, it cannot know.
std::string explain(const std::string& error) {
  if (error.find("my_ops::") == std::string::npos) return error;
  return "the model needs the operators of my_ops, which are not loaded: pass libmy_ops.so as the last argument, or "
         "link "
         "my_ops::my_ops\n" +
         error;
}

int main(int count, char** arguments) {
  if (count < 4 || count > 5) {
    std::cerr << "serve MODEL INPUTS OUTPUTS [LIBRARY]\n";
    return 2;
  }
  if (count == 5 && !dlopen(arguments[4], RTLD_NOW)) {
    std::cerr << "serve: " << dlerror() << '\n';
    return 1;
  }
  try {
    const c10::InferenceMode inference;
    Model model = load(arguments[1]);
    std::vector<at::Tensor> outputs;
    for (const at::Tensor& input : read_tensors(arguments[2])) outputs.push_back(model(input));
    write_tensors(arguments[3], outputs);
  } catch (const c10::Error& error) {
    std::cerr << "serve: " << explain(error.what_without_backtrace()) << '\n';
    return 1;
  } catch (const std::exception& error) {
    std::cerr << "serve: " << explain(error.what()) << '\n';
    return 1;
  }
}
