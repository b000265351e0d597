// torch.distributed from C++: its functional collectives, which are operators like ours. They start at once, give new
// tensors, and are recorded by torch.compile. The engine behind them (Gloo, NCCL) is the group's.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

namespace my_ops::sync {

/// A process group of torch.distributed: `size` processes, registered under `name`.
struct Group {
  int64_t size = 0;
  std::string name;
};

/// A collective on its way. The local work that is done before wait() costs no time of its own.
class Pending {
 public:
  /// The result. An error if another rank has failed, or does not answer within the group's time-out.
  at::Tensor wait() const;

 private:
  friend Pending start_all_gather(const at::Tensor&, const Group&);
  friend Pending start_reduce_scatter(const at::Tensor&, const Group&);

  at::Tensor flat_;
  c10::SymDimVector sizes_;
  Group group_;
};

/// All parts in rank order, [R, ...], of one part [...] per rank.
Pending start_all_gather(const at::Tensor& part, const Group& group);

/// On rank r the sum over all ranks of their row r: [...] of [R, ...].
Pending start_reduce_scatter(const at::Tensor& parts, const Group& group);

}  // namespace my_ops::sync
