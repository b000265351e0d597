// The typed functions and the modules of the installed headers, held against torch's own.
#include <ATen/Context.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/native_batch_norm.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <my_ops/batchnorm.h>
#include <my_ops/info.h>
#include <my_ops/ops.h>
#include <torch/csrc/autograd/custom_function.h>

#include <iostream>
#include <sstream>
#include <string>

namespace {

int failures = 0;

void expect(bool truth, const std::string& what) {
  if (truth) return;
  std::cerr << "failed: " << what << '\n';
  ++failures;
}

void expect_close(const at::Tensor& got, const at::Tensor& want, const std::string& what) {
  expect(got.sizes() == want.sizes() && at::allclose(got, want, 1e-4, 1e-5), what);
}

// Two training steps and one evaluation: output, gradients and state.
template <class Ours, class Torchs>
void check_module(const torch::nn::BatchNormOptions& options, at::IntArrayRef shape, const std::string& what) {
  Ours ours(options);
  Torchs torchs(options);
  for (int step = 0; step < 3; ++step) {
    const bool training = step < 2;
    ours->train(training);
    torchs->train(training);
    at::Tensor x = at::randn(shape).requires_grad_();
    at::Tensor twin = x.detach().clone().requires_grad_();
    const at::Tensor y = ours->forward(x);
    const at::Tensor want = torchs->forward(twin);
    expect_close(y, want, what + ": output");
    const at::Tensor weights = at::randn(shape);
    (y * weights).sum().backward();
    (want * weights).sum().backward();
    expect_close(x.grad(), twin.grad(), what + ": gradient of the input");
  }
  const auto want = torchs->named_parameters();
  for (const auto& parameter : ours->named_parameters()) {
    expect_close(parameter->grad(), want[parameter.key()].grad(), what + ": gradient of " + parameter.key());
  }
  const auto buffers = torchs->named_buffers();
  expect(ours->named_buffers().size() == buffers.size(), what + ": number of buffers");
  for (const auto& buffer : ours->named_buffers()) {
    expect_close(buffer->to(at::kDouble), buffers[buffer.key()].to(at::kDouble), what + ": " + buffer.key());
  }
}

void check_modules() {
  using Options = torch::nn::BatchNormOptions;
  check_module<my_ops::nn::BatchNorm1d, torch::nn::BatchNorm1d>(Options(5), {7, 5}, "BatchNorm1d");
  check_module<my_ops::nn::BatchNorm1d, torch::nn::BatchNorm1d>(Options(5), {7, 5, 9}, "BatchNorm1d of rank 3");
  check_module<my_ops::nn::BatchNorm2d, torch::nn::BatchNorm2d>(Options(5).momentum(std::nullopt), {3, 5, 6, 7},
                                                                "BatchNorm2d, cumulative");
  check_module<my_ops::nn::BatchNorm2d, torch::nn::BatchNorm2d>(Options(5).affine(false).eps(1e-2), {3, 5, 6, 7},
                                                                "BatchNorm2d, not affine");
  check_module<my_ops::nn::BatchNorm3d, torch::nn::BatchNorm3d>(Options(5).track_running_stats(false), {2, 5, 3, 4, 5},
                                                                "BatchNorm3d, no statistics");
}

void check_module_objects() {
  my_ops::nn::BatchNorm2d norm(4);
  std::ostringstream text;
  text << norm;
  expect(text.str().starts_with("my_ops::nn::BatchNorm2d(4, eps=1e-05, momentum=0.1"), "printed as " + text.str());
  const auto copy = norm->clone();
  expect(copy->as<my_ops::nn::BatchNorm2dImpl>() != nullptr, "a clone is of the same class");
  try {
    norm->forward(at::randn({3, 4, 5}));
    expect(false, "an input of rank 3 is refused");
  } catch (const c10::Error& error) {
    const std::string message = error.what_without_backtrace();
    expect(message == "BatchNorm2d: expected input of rank 4, got shape [3, 4, 5]", message);
  }
}

void check_functions() {
  namespace ops = my_ops::ops;
  const at::Tensor x = at::randn({4, 3, 5, 5});
  const at::Tensor gamma = at::randn({3});
  const at::Tensor beta = at::randn({3});
  at::Tensor mean = at::randn({3});
  at::Tensor var = at::rand({3}) + 0.5;
  at::Tensor native_mean = mean.clone();
  at::Tensor native_var = var.clone();

  auto [y, save_mean, save_invstd] = ops::batchnorm_forward(x, gamma, beta, mean, var, true, 0.1, 1e-5);
  auto [want, want_mean, want_invstd] = at::native_batch_norm(x, gamma, beta, native_mean, native_var, true, 0.1, 1e-5);
  expect_close(y, want, "batchnorm_forward");
  expect_close(save_mean, want_mean, "save_mean");
  expect_close(save_invstd, want_invstd, "save_invstd");
  expect_close(mean, native_mean, "running_mean");
  expect_close(var, native_var, "running_var");

  const auto [part_mean, m2, count] = ops::batchnorm_stats(x);
  const auto [all_mean, all_invstd, total] = ops::batchnorm_gather_stats(part_mean.unsqueeze(0), m2.unsqueeze(0), count,
                                                                         std::nullopt, std::nullopt, 0.1, 1e-5);
  expect_close(ops::batchnorm_apply(x, gamma, beta, all_mean, all_invstd), want, "the phases");

  const at::Tensor dy = at::randn(x.sizes());
  const auto [dx, dgamma, dbeta] = ops::batchnorm_backward(dy, x, gamma, save_mean, save_invstd);
  const auto [sum_dy, sum_dy_xhat] = ops::batchnorm_backward_reduce(dy, x, all_mean, all_invstd);
  expect_close(dbeta, sum_dy, "grad_beta");
  expect_close(dgamma, sum_dy_xhat, "grad_gamma");
  expect_close(ops::batchnorm_backward_apply(dy, x, gamma, all_mean, all_invstd, sum_dy, sum_dy_xhat, total), dx,
               "grad_input");

  namespace F = my_ops::nn::functional;
  const auto options = torch::nn::functional::BatchNormFuncOptions().weight(gamma).bias(beta);
  expect_close(F::batch_norm(x, mean, var, options), torch::nn::functional::batch_norm(x, mean, var, options),
               "functional");
  expect_close(F::batch_norm(x, mean, var), torch::nn::functional::batch_norm(x, mean, var), "functional, plain");
}

/// The gradient of the identity is a tensor over memory that torch does not own.
struct OfForeignMemory : torch::autograd::Function<OfForeignMemory> {
  static at::Tensor forward(torch::autograd::AutogradContext*, const at::Tensor& x) { return x.clone(); }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext*, torch::autograd::variable_list) {
    return {at::from_blob(memory.data_ptr(), memory.sizes())};
  }
  static inline at::Tensor memory;
};

// A backward pass may write over a large gradient that nobody else holds, but a storage does not count such holders.
void check_gradients_in_foreign_memory() {
  const at::Tensor x = at::randn({4, 3, 320, 320}).requires_grad_();
  const at::Tensor y = std::get<0>(
      my_ops::ops::batchnorm_forward(x, std::nullopt, std::nullopt, std::nullopt, std::nullopt, true, 0.1, 1e-5));
  OfForeignMemory::memory = at::randn(x.sizes());
  const at::Tensor before = OfForeignMemory::memory.clone();
  OfForeignMemory::apply(y).sum().backward();
  expect(at::equal(OfForeignMemory::memory, before), "a gradient in foreign memory stays as it was");
}

}  // namespace

int main() {
  at::manual_seed(0);
  check_modules();
  check_module_objects();
  check_functions();
  check_gradients_in_foreign_memory();
  expect(my_ops::build_info().find("\"version\": \"" MY_OPS_VERSION "\"") != std::string::npos, "build_info");
  std::cout << my_ops::build_info() << '\n';
  return failures;
}
