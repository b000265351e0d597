// Every operator of the library, in one place. Kernels are registered per dispatch key in the folder of that key:
// autograd/, meta/, cpu/, cuda/.
//
// N batch, C channels, S product of the spatial sizes, M = N*S values per channel.
#include <torch/library.h>

#include "my_ops/info.h"

TORCH_LIBRARY(my_ops, m) {
  // Whole batch normalization, one call each way. `training` chooses batch statistics (which then update the running
  // ones) or running statistics; momentum None means the cumulative average, 1 / num_batches_tracked.
  m.def(
      "batchnorm_forward(Tensor input, Tensor? gamma, Tensor? beta, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
      "bool training, float? momentum, float eps, Tensor(c!)? num_batches_tracked=None) "
      "-> (Tensor output, Tensor save_mean, Tensor save_invstd)");
  m.def(
      "batchnorm_backward(Tensor grad_output, Tensor input, Tensor? gamma, Tensor save_mean, Tensor save_invstd, "
      "bool training=True, bool[3] output_mask=[True, True, True]) "
      "-> (Tensor grad_input, Tensor grad_gamma, Tensor grad_beta)");
  m.def(
      "batchnorm_forward.out(Tensor input, Tensor? gamma, Tensor? beta, Tensor(a!)? running_mean, "
      "Tensor(b!)? running_var, bool training, float? momentum, float eps, Tensor(c!)? num_batches_tracked=None, *, "
      "Tensor(d!) output, Tensor(e!) save_mean, Tensor(f!) save_invstd) -> (Tensor(d!), Tensor(e!), Tensor(f!))");
  // Where output_mask is False the argument is left alone.
  m.def(
      "batchnorm_backward.out(Tensor grad_output, Tensor input, Tensor? gamma, Tensor save_mean, Tensor save_invstd, "
      "bool training=True, bool[3] output_mask=[True, True, True], *, "
      "Tensor(a!) grad_input, Tensor(b!) grad_gamma, Tensor(c!) grad_beta) -> (Tensor(a!), Tensor(b!), Tensor(c!))");

  // The same in phases, with room for a collective between them: stats | gather_stats, apply and
  // backward_reduce | backward_apply. mean, m2: [C]; count: [1]; gather_stats takes R parts: [R, C], [R, C], [R].
  m.def("batchnorm_stats(Tensor input) -> (Tensor mean, Tensor m2, Tensor count)");
  m.def(
      "batchnorm_gather_stats(Tensor mean, Tensor m2, Tensor count, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
      "float? momentum, float eps, Tensor(c!)? num_batches_tracked=None) "
      "-> (Tensor mean, Tensor invstd, Tensor count)");
  m.def("batchnorm_apply(Tensor input, Tensor? gamma, Tensor? beta, Tensor mean, Tensor invstd) -> Tensor");
  m.def(
      "batchnorm_apply.out(Tensor input, Tensor? gamma, Tensor? beta, Tensor mean, Tensor invstd, *, Tensor(a!) out) "
      "-> Tensor(a!)");
  m.def(
      "batchnorm_backward_reduce(Tensor grad_output, Tensor input, Tensor mean, Tensor invstd) "
      "-> (Tensor sum_dy, Tensor sum_dy_xhat)");
  m.def(
      "batchnorm_backward_apply(Tensor grad_output, Tensor input, Tensor? gamma, Tensor mean, Tensor invstd, "
      "Tensor sum_dy, Tensor sum_dy_xhat, Tensor count) -> Tensor");
  m.def(
      "batchnorm_backward_apply.out(Tensor grad_output, Tensor input, Tensor? gamma, Tensor mean, Tensor invstd, "
      "Tensor sum_dy, Tensor sum_dy_xhat, Tensor count, *, Tensor(a!) out) -> Tensor(a!)");

  // Synchronized over the `group_size` processes of the torch.distributed group named `group_name`, each of which has a
  // part of the batch: output = act(batchnorm(input) + residual), as below. all_gather: [R, ...] of [...];
  // reduce_scatter, its derivative: [...] of [R, ...].
  m.def(
      "sync_batchnorm_forward(Tensor input, Tensor? gamma, Tensor? beta, Tensor(a!)? running_mean, "
      "Tensor(b!)? running_var, float? momentum, float eps, Tensor(c!)? num_batches_tracked, int group_size, "
      "str group_name, Tensor? residual=None, str activation='identity', float slope=0.) "
      "-> (Tensor output, Tensor mean, Tensor invstd)");
  m.def(
      "sync_batchnorm_apply(Tensor input, Tensor? gamma, Tensor? beta, Tensor mean, Tensor invstd, Tensor count, "
      "int group_size, str group_name, Tensor? residual=None, str activation='identity', float slope=0.) -> Tensor");
  m.def("all_gather(Tensor part, int group_size, str group_name) -> Tensor");
  m.def("reduce_scatter(Tensor parts, int group_size, str group_name) -> Tensor");

  // Instance normalization: batch normalization of every image by itself, with statistics [N, C]. Running statistics
  // move towards the means over N. From running statistics it is batchnorm_forward with training = False.
  m.def(
      "instancenorm_forward(Tensor input, Tensor? gamma, Tensor? beta, Tensor(a!)? running_mean, "
      "Tensor(b!)? running_var, float momentum, float eps) -> (Tensor output, Tensor save_mean, Tensor save_invstd)");
  m.def(
      "instancenorm_backward(Tensor grad_output, Tensor input, Tensor? gamma, Tensor save_mean, Tensor save_invstd, "
      "bool[3] output_mask=[True, True, True]) -> (Tensor grad_input, Tensor grad_gamma, Tensor grad_beta)");

  // Batch normalization, a residual and an activation in the same passes: z = batchnorm(input) + residual and
  // output = act(z), act one of identity, relu, leaky_relu (slope), relu6, elu (alpha = slope), silu and gelu_tanh.
  //
  // mask: uint8, a bit per element that tells whether z > 0 (and z < 6 for relu6), in memory order (element i of the
  // output's memory is bit i % 8 of byte i / 8); for relu, leaky_relu and relu6 with a residual, else empty. The
  // backward pass computes z again from input and, for elu, silu and gelu_tanh, residual; the other three take the mask
  // instead of a residual.
  m.def(
      "batchnorm_act_forward(Tensor input, Tensor? residual, Tensor? gamma, Tensor? beta, Tensor(a!)? running_mean, "
      "Tensor(b!)? running_var, bool training, float? momentum, float eps, str activation, float slope=0., "
      "Tensor(c!)? num_batches_tracked=None) -> (Tensor output, Tensor save_mean, Tensor save_invstd, Tensor mask)");
  m.def(
      "batchnorm_act_backward(Tensor grad_output, Tensor input, Tensor? residual, Tensor? mask, Tensor? gamma, "
      "Tensor? beta, Tensor save_mean, Tensor save_invstd, bool training, str activation, float slope=0., "
      "bool[4] output_mask=[True, True, True, True]) "
      "-> (Tensor grad_input, Tensor grad_residual, Tensor grad_gamma, Tensor grad_beta)");
  // The same without new memory for one image: grad_output becomes grad_residual where that is wanted, else grad_input,
  // which is then left out of the results.
  m.def(
      "batchnorm_act_backward_(Tensor(a!) grad_output, Tensor input, Tensor? residual, Tensor? mask, Tensor? gamma, "
      "Tensor? beta, Tensor save_mean, Tensor save_invstd, bool training, str activation, float slope=0., "
      "bool[4] output_mask=[True, True, True, True]) -> (Tensor grad_input, Tensor grad_gamma, Tensor grad_beta)");

  // In place: input becomes output = act(batchnorm(input)), act identity, leaky_relu with slope > 0 or elu, and the
  // backward pass starts from there. kept: int64 [k], the channels whose input cannot be computed back from the output
  // (gamma near 0: plan/invertible.h); kept_input: [N, k, ...], their input.
  m.def(
      "batchnorm_act_forward_(Tensor(a!) input, Tensor? gamma, Tensor? beta, Tensor(b!)? running_mean, "
      "Tensor(c!)? running_var, bool training, float? momentum, float eps, str activation, float slope=0., "
      "Tensor(d!)? num_batches_tracked=None) "
      "-> (Tensor save_mean, Tensor save_invstd, Tensor kept, Tensor kept_input)");
  m.def(
      "batchnorm_act_backward_from_output(Tensor grad_output, Tensor output, Tensor kept, Tensor kept_input, "
      "Tensor? gamma, Tensor? beta, Tensor save_mean, Tensor save_invstd, bool training, str activation, "
      "float slope=0., bool[3] output_mask=[True, True, True]) "
      "-> (Tensor grad_input, Tensor grad_gamma, Tensor grad_beta)");

  // In phases; statistics as above. The sums are those of dz = dy * act'(z), which is also grad_residual.
  m.def(
      "batchnorm_act_apply(Tensor input, Tensor? residual, Tensor? gamma, Tensor? beta, Tensor mean, Tensor invstd, "
      "str activation, float slope) -> (Tensor output, Tensor mask)");
  m.def(
      "batchnorm_act_backward_reduce(Tensor grad_output, Tensor input, Tensor? residual, Tensor? mask, Tensor? gamma, "
      "Tensor? beta, Tensor mean, Tensor invstd, str activation, float slope) -> (Tensor sum_dy, Tensor sum_dy_xhat)");
  m.def(
      "batchnorm_act_backward_apply(Tensor grad_output, Tensor input, Tensor? residual, Tensor? mask, Tensor? gamma, "
      "Tensor? beta, Tensor mean, Tensor invstd, str activation, float slope, Tensor sum_dy, Tensor sum_dy_xhat, "
      "Tensor count) -> (Tensor grad_input, Tensor grad_residual)");

  // In place, in phases. centered = input - mean, computed back from the output.
  m.def(
      "batchnorm_act_apply_(Tensor(a!) input, Tensor? gamma, Tensor? beta, Tensor mean, Tensor invstd, "
      "str activation, float slope) -> (Tensor kept, Tensor kept_input)");
  m.def(
      "batchnorm_act_recover(Tensor output, Tensor kept, Tensor kept_input, Tensor? gamma, Tensor? beta, Tensor mean, "
      "Tensor invstd, str activation, float slope) -> (Tensor centered)");
  m.def(
      "sync_batchnorm_act_forward_(Tensor(a!) input, Tensor? gamma, Tensor? beta, Tensor(b!)? running_mean, "
      "Tensor(c!)? running_var, float? momentum, float eps, str activation, float slope, "
      "Tensor(d!)? num_batches_tracked, int group_size, str group_name) "
      "-> (Tensor mean, Tensor invstd, Tensor count, Tensor kept, Tensor kept_input)");

  // Convolution, then batch norm (and an activation), without keeping what is between them: the backward operator runs
  // the convolution anew. stride, padding and dilation have a number per spatial dimension.
  m.def(
      "conv_batchnorm_forward(Tensor input, Tensor weight, Tensor? bias, Tensor? gamma, Tensor? beta, "
      "Tensor(a!)? running_mean, Tensor(b!)? running_var, int[] stride, int[] padding, int[] dilation, int groups, "
      "bool training, float? momentum, float eps, Tensor(c!)? num_batches_tracked=None, str activation='identity', "
      "float slope=0.) -> (Tensor output, Tensor save_mean, Tensor save_invstd)");
  m.def(
      "conv_batchnorm_backward(Tensor grad_output, Tensor input, Tensor weight, Tensor? bias, Tensor? gamma, "
      "Tensor? beta, Tensor save_mean, Tensor save_invstd, int[] stride, int[] padding, int[] dilation, int groups, "
      "bool training=True, str activation='identity', float slope=0., bool[5] output_mask=[True, True, True, True, "
      "True]) "
      "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias, Tensor grad_gamma, Tensor grad_beta)");

  // The same, synchronized.
  m.def(
      "sync_conv_batchnorm_forward(Tensor input, Tensor weight, Tensor? bias, Tensor? gamma, Tensor? beta, "
      "Tensor(a!)? running_mean, Tensor(b!)? running_var, int[] stride, int[] padding, int[] dilation, int groups, "
      "float? momentum, float eps, Tensor(c!)? num_batches_tracked, str activation, float slope, int group_size, "
      "str group_name) -> (Tensor output, Tensor mean, Tensor invstd, Tensor count)");
  m.def(
      "sync_conv_batchnorm_backward(Tensor grad_output, Tensor input, Tensor weight, Tensor? bias, Tensor? gamma, "
      "Tensor? beta, Tensor mean, Tensor invstd, Tensor count, int[] stride, int[] padding, int[] dilation, "
      "int groups, str activation, float slope, int group_size, str group_name, "
      "bool[5] output_mask=[True, True, True, True, True]) "
      "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias, Tensor grad_gamma, Tensor grad_beta)");

  // What this library is and runs on.
  m.def("cpu_capability() -> str", &my_ops::cpu_capability);
  m.def("build_info() -> str", &my_ops::build_info);
}
