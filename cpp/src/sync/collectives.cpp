#include "sync/collectives.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/util/Exception.h>

#include <stdexcept>
#include <utility>

namespace my_ops::sync {
namespace {

using at::Tensor;

[[noreturn]] void fail(const Group& group, const char* why) {
  C10_THROW_ERROR(DistBackendError, c10::str("sync_batchnorm: expected an answer of all ", group.size,
                                             " ranks of process group '", group.name, "', got: ", why));
}

/// Through a stack, because the type of `group_name` in the schema is not the same in every torch. Below autograd,
/// because torch's derivatives of these operators communicate even where no gradient came.
template <class... Arguments>
Tensor call(const Group& group, const char* name, Arguments&&... arguments) {
  const at::AutoDispatchBelowADInplaceOrView below;
  torch::jit::Stack stack;
  (stack.emplace_back(std::forward<Arguments>(arguments)), ...);
  try {
    c10::Dispatcher::singleton().findSchemaOrThrow(name, "").callBoxed(&stack);
  } catch (const c10::Error& error) {
    fail(group, error.what_without_backtrace());
  } catch (const std::runtime_error& error) {
    fail(group, error.what());
  }
  return stack.back().toTensor();
}

}  // namespace

Tensor Pending::wait() const { return call(group_, "_c10d_functional::wait_tensor", flat_).view_symint(sizes_); }

Pending start_all_gather(const Tensor& part, const Group& group) {
  Pending pending;
  pending.flat_ =
      call(group, "_c10d_functional::all_gather_into_tensor", part.contiguous().flatten(), group.size, group.name);
  pending.sizes_.push_back(group.size);
  for (const auto& size : part.sym_sizes()) pending.sizes_.push_back(size);
  pending.group_ = group;
  return pending;
}

Pending start_reduce_scatter(const Tensor& parts, const Group& group) {
  Pending pending;
  pending.flat_ = call(group, "_c10d_functional::reduce_scatter_tensor", parts.contiguous().flatten(), "sum",
                       group.size, group.name);
  for (const auto& size : parts.sym_sizes().slice(1)) pending.sizes_.push_back(size);
  pending.group_ = group;
  return pending;
}

}  // namespace my_ops::sync
