// libFuzzer target: bytes choose a cut of the work, a pair of tensors, or the arguments of a check, and what plan/
// promises of them is asserted. Tensors are views of one small buffer, of any strides: expanded, overlapping, permuted.
#include <ATen/Functions.h>
#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "plan/checks.h"
#include "plan/convolution.h"
#include "plan/outputs.h"
#include "plan/overlap.h"
#include "plan/partition.h"
#include "plan/problem.h"

namespace {

using at::Tensor;
using my_ops::plan::Layout;
using my_ops::plan::OptionalTensor;
using my_ops::plan::Partition;
using my_ops::plan::Region;
using my_ops::plan::Shape;
namespace plan = my_ops::plan;

void expect(bool truth, const std::string& what) {
  if (truth) return;
  std::fprintf(stderr, "not so: %s\n", what.c_str());
  std::abort();
}

class Bytes : public FuzzedDataProvider {
 public:
  using FuzzedDataProvider::FuzzedDataProvider;

  int64_t number(int64_t least, int64_t most) { return ConsumeIntegralInRange<int64_t>(least, most); }

  template <class T>
  T one_of(std::initializer_list<T> choices) {
    return choices.begin()[number(0, static_cast<int64_t>(choices.size()) - 1)];
  }

  at::ScalarType dtype() {
    return one_of({at::kFloat, at::kDouble, at::kHalf, at::kBFloat16, at::kLong, at::kByte, at::kComplexFloat});
  }

  /// A view of `buffer`.
  Tensor view(const Tensor& buffer, int64_t rank, std::vector<int64_t> sizes = {}) {
    std::vector<int64_t> strides;
    int64_t last = 0;
    for (int64_t d = 0; d < rank; ++d) {
      if (d == static_cast<int64_t>(sizes.size())) sizes.push_back(number(0, 4));
      strides.push_back(number(0, 12));
      last += std::max<int64_t>(sizes[d] - 1, 0) * strides[d];
    }
    if (last >= buffer.numel()) return buffer.new_zeros(sizes);
    return buffer.as_strided(sizes, strides, number(0, buffer.numel() - 1 - last));
  }

  /// Any argument: mostly a vector or an image that fits beside `like`, as wrong tensors end a check early.
  Tensor argument(const Tensor& like) {
    switch (number(0, 7)) {
      case 0:
        return at::zeros({number(0, 3)}, dtype());
      case 1:
        return like;
      case 2:
        return at::empty_like(like, dtype());
      case 3:
        return at::empty(like.sizes(), at::device(at::kMeta).dtype(like.scalar_type()));
      case 4:
        return view(at::zeros({64}, dtype()), number(0, 4));
      case 5:
        return like.dim() > 1 ? view(at::zeros({64}, like.scalar_type()), 1, {like.size(1)}) : like;
      case 6:
        return at::zeros({number(0, 4), number(0, 4)}, dtype()).to_sparse();
      default:
        return at::zeros({like.dim() > 1 ? like.size(1) : 1}, one_of({at::kFloat, like.scalar_type(), at::kLong}));
    }
  }

  OptionalTensor maybe(const Tensor& like) { return ConsumeBool() ? OptionalTensor(argument(like)) : std::nullopt; }
};

// ---- the cut ----

void check_region(const Partition& part, const Region& region) {
  expect(0 <= region.c0 && region.c0 < region.c1 && region.c1 <= part.channels, "channels of a region");
  const int64_t first = region.image * part.values;
  expect(first <= region.b && region.b < region.e && region.e <= first + part.values, "values of a region");
  expect(0 <= region.image && region.image < part.images, "image of a region");
}

/// Any tensor of at most 2^50 elements.
void cut(Bytes& bytes) {
  const auto size = [&](int64_t bits) { return bytes.number(1, int64_t{1} << bytes.number(0, bits)); };
  const Shape shape{size(16), size(16), size(18), bytes.one_of({Layout::contiguous, Layout::channels_last})};
  const int64_t width = bytes.number(1, 32);
  const int64_t kind = bytes.number(0, 3);
  const Partition part = kind == 0   ? plan::reduction_partition(shape, width)
                         : kind == 1 ? plan::elementwise_partition(shape, width)
                         : kind == 2 ? plan::instance_partition(shape, width)
                                     : plan::apply_partition(shape, width);
  const int64_t groups = part.groups();
  const int64_t chunks = part.chunks();
  expect(part.channels == shape.c && part.images * part.values == shape.n * shape.s, "size of a partition");
  expect(part.group > 0 && part.chunk > 0 && groups > 0 && chunks > 0, "an empty cut");
  const int64_t g = bytes.number(0, groups - 1);
  const int64_t k = bytes.number(0, chunks - 1);
  const Region region = part.region(g, k);
  check_region(part, region);
  const Region last = part.region(groups - 1, chunks - 1);
  check_region(part, last);
  expect(last.c1 == part.channels && last.e == part.images * part.values, "the last region ends elsewhere");
  if (k + 1 < chunks) expect(part.region(g, k + 1).b == region.e, "chunks do not meet");
  if (g + 1 < groups) {
    const Region next = part.region(g + 1, k);
    const bool same_image = next.image == region.image;
    expect(same_image ? next.c0 == region.c1 : next.c0 == 0 && region.c1 == part.channels, "groups do not meet");
  }
  const Shape walked = kind == 2 ? Shape{1, shape.c, shape.s, shape.layout} : shape;
  const int64_t inner = shape.layout == Layout::channels_last ? 1 : shape.s;
  if (kind == 3 && plan::in_order(shape, part.group, width)) {
    expect(part.group == shape.c ? part.chunk % shape.s == 0 : part.chunk == shape.s, "a region in several pieces");
  } else if (plan::by_rows(walked)) {
    expect(part.group * inner <= plan::kMaxColumns && part.chunk % inner == 0, "limits of rows");
  } else {
    expect(kind == 1 || kind == 3 || part.group <= plan::kMaxRunGroup, "limits of runs");
    expect(part.group == 1 || part.chunk % shape.s == 0, "an image was cut");
  }
}

// ---- memory ----

/// The bytes of every element, with repetitions.
std::vector<const char*> addresses(const Tensor& tensor) {
  std::vector<const char*> all{static_cast<const char*>(tensor.const_data_ptr())};
  if (tensor.numel() == 0) return {};
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    std::vector<const char*> more;
    for (const char* address : all) {
      for (int64_t i = 0; i < tensor.size(d); ++i)
        more.push_back(address + i * tensor.stride(d) * tensor.element_size());
    }
    all = more;
  }
  return all;
}

bool really_overlap(const Tensor& a, const Tensor& b) {
  std::set<const char*> seen;
  for (const char* address : addresses(a)) {
    for (int64_t i = 0; i < a.element_size(); ++i) seen.insert(address + i);
  }
  for (const char* address : addresses(b)) {
    for (int64_t i = 0; i < b.element_size(); ++i) {
      if (seen.count(address + i)) return true;
    }
  }
  return false;
}

bool really_overlaps_itself(const Tensor& tensor) {
  const auto all = addresses(tensor);
  return std::set<const char*>(all.begin(), all.end()).size() < all.size();
}

void memory(Bytes& bytes) {
  const Tensor buffer = at::zeros({64}, at::kFloat);
  const int64_t rank = bytes.number(1, 4);
  const Tensor a = bytes.view(buffer, rank);
  Tensor b = bytes.view(bytes.ConsumeBool() ? buffer : buffer.view(at::kShort), bytes.number(1, 4));
  if (bytes.ConsumeBool() && a.is_alias_of(buffer)) {
    b = buffer.as_strided(a.sizes(), a.strides(), bytes.number(0, a.storage_offset()));
  }
  const bool overlap = plan::overlap(a, b);
  expect(overlap || !really_overlap(a, b), "an overlap was missed");
  expect(plan::overlap(b, a) == overlap, "overlap has a direction");
  const bool itself = plan::overlaps_itself(a);
  expect(itself || !really_overlaps_itself(a), "an overlap with itself was missed");
  const bool alike = a.strides() == b.strides() && a.element_size() == b.element_size() && a.sizes() == b.sizes();
  if (alike && !itself) expect(overlap == really_overlap(a, b), "tensors alike were taken to overlap");
  if (plan::same_memory(a, b) && a.numel() > 0) expect(overlap, "the same memory does not overlap");
}

// ---- layouts ----

/// The element of each value lies where Shape says, in a tensor that counts its memory.
void check_places(const Tensor& dense) {
  const Shape shape = plan::shape_of(dense);
  const Tensor counted = at::arange(dense.numel(), at::kLong).as_strided(dense.sizes(), dense.strides());
  const Tensor channels = counted.transpose(0, 1).reshape({dense.size(1), -1}).contiguous();
  const auto* place = channels.const_data_ptr<int64_t>();
  expect(shape.c == dense.size(1) && shape.n * shape.s * shape.c == dense.numel(), "size of a shape");
  for (int64_t c = 0; c < shape.c; ++c) {
    for (int64_t v = 0; v < shape.n * shape.s; ++v) {
      const int64_t wanted =
          shape.layout == Layout::contiguous ? (v / shape.s * shape.c + c) * shape.s + v % shape.s : v * shape.c + c;
      expect(*place++ == wanted, "an element lies elsewhere");
    }
  }
}

void layouts(Bytes& bytes) {
  const Tensor buffer = at::arange(64, at::kFloat);
  const int64_t rank = bytes.number(2, 5);
  const Tensor x = bytes.view(buffer, rank);
  const Tensor dense = plan::dense(x);
  expect(at::equal(dense, x), "a dense copy has other values");
  expect(plan::dense(dense).is_same(dense), "a dense tensor was copied");
  expect(!plan::overlaps_itself(dense), "a dense tensor overlaps itself");
  if (dense.numel() > 0) check_places(dense);
  const Tensor other = bytes.view(buffer, rank, x.sizes().vec());
  const Tensor alike = plan::dense_like(other, dense);
  expect(at::equal(alike, other) && plan::laid_out_like(alike, dense), "a dense copy in another's layout");
  if (dense.numel() > 0) {
    for (int64_t d = 0; d < rank; ++d) {
      expect(dense.size(d) == 1 || alike.stride(d) == dense.stride(d), "strides of the same layout differ");
    }
  }
  Tensor out = at::empty({0});
  plan::resize_image(out, dense);
  expect(out.sizes() == dense.sizes() && plan::laid_out_like(out, dense), "a result of another layout");
}

// ---- checks ----

/// The arguments of check_forward that may pass, told apart in another way than the checks do.
bool may_pass(const Tensor& x, const std::vector<OptionalTensor>& vectors) {
  if (x.layout() != at::kStrided || x.dim() < 2 || !x.is_floating_point()) return false;
  return std::all_of(vectors.begin(), vectors.end(), [&](const OptionalTensor& t) {
    return !t || (t->layout() == at::kStrided && t->device() == x.device() && t->sizes() == x.sizes().slice(1, 1) &&
                  t->is_floating_point());
  });
}

void arguments(Bytes& bytes) {
  const Tensor buffer = at::zeros({64}, bytes.dtype());
  Tensor x = bytes.view(buffer, bytes.number(0, 5));
  if (bytes.number(0, 7) == 0) x = bytes.argument(x);
  const auto any = [&] { return bytes.argument(x); };
  const auto maybe = [&] { return bytes.maybe(x); };
  const OptionalTensor gamma = maybe(), beta = maybe(), mean = maybe(), var = maybe(), counter = maybe();
  const Tensor a = any(), b = any(), c = any(), d = any(), e = any();
  const bool training = bytes.ConsumeBool();
  const std::optional<double> momentum = bytes.ConsumeBool() ? std::optional(0.1) : std::nullopt;
  const double eps = bytes.ConsumeFloatingPoint<double>();
  const auto activation = static_cast<plan::Activation>(bytes.number(0, 5));
  const double slope = bytes.ConsumeFloatingPoint<double>();
  const std::array<bool, 3> mask{bytes.ConsumeBool(), bytes.ConsumeBool(), bytes.ConsumeBool()};
  const auto numbers = [&] { return std::vector<int64_t>(bytes.number(0, 4), bytes.number(-1, 2)); };
  const plan::Convolution convolution{numbers(), numbers(), numbers(), bytes.number(-1, 4)};
  const std::vector<std::function<void()>> checks = {
      [&] {
        plan::check_forward(x, gamma, beta, mean, var, training, momentum, eps, counter);
        expect(may_pass(x, {gamma, beta, mean, var}), "wrong arguments passed");
        plan::check_forward_out(x, gamma, beta, mean, var, counter, a, b, c);
        expect(a.numel() == 0 || a.sizes() == x.sizes(), "a wrong output passed");
        expect(!x.is_cpu() || !plan::overlaps_itself(a), "an output that overlaps itself passed");
      },
      [&] {
        plan::check_backward(a, x, gamma, b, c);
        expect(may_pass(x, {gamma, b, c}) && a.sizes() == x.sizes(), "wrong arguments passed");
        plan::check_backward_out(a, x, gamma, b, c, mask, d, e, a);
      },
      [&] { plan::check_stats(x); },
      [&] {
        plan::check_gather_stats(x, a, b, mean, var, momentum, eps, counter);
        expect(x.dim() == 2 && a.sizes() == x.sizes() && b.size(0) == x.size(0), "wrong parts passed");
      },
      [&] {
        plan::check_apply(x, gamma, beta, a, b);
        expect(may_pass(x, {gamma, beta, a, b}), "wrong arguments passed");
        plan::check_apply_out(x, gamma, beta, a, b, c);
      },
      [&] { plan::check_backward_reduce(a, x, b, c); },
      [&] {
        plan::check_backward_apply(a, x, gamma, b, c, d, e, e);
        plan::check_backward_apply_out(a, x, gamma, b, c, d, e, e, a);
      },
      [&] { plan::check_sync_forward(x, gamma, beta, mean, var, momentum, eps, counter, bytes.number(-1, 2)); },
      [&] {
        plan::check_instance_forward(x, gamma, beta, mean, var, eps);
        expect(may_pass(x, {gamma, beta, mean, var}) && x.dim() > 2, "wrong arguments passed");
      },
      [&] { plan::check_instance_backward(a, x, gamma, b, c); },
      [&] { plan::check_act_forward(x, beta, gamma, beta, mean, var, training, momentum, eps, counter); },
      [&] { plan::check_act_backward(a, x, mean, var, gamma, beta, b, c, activation); },
      [&] { plan::check_act_apply(x, mean, gamma, beta, a, b); },
      [&] { plan::check_act_backward_reduce(a, x, mean, var, gamma, beta, b, c, activation); },
      [&] { plan::check_act_backward_apply(a, x, mean, var, gamma, beta, b, c, activation, d, d, e); },
      [&] {
        plan::check_act_forward_in_place(x, gamma, beta, mean, var, training, momentum, eps, activation, slope,
                                         counter);
        expect(!x.is_cpu() || !plan::overlaps_itself(x), "an input that overlaps itself is to be overwritten");
      },
      [&] { plan::check_act_backward_from_output(a, x, b, c, gamma, beta, d, e, activation, slope); },
      [&] { plan::check_convolution("conv_batchnorm_forward", x, a, gamma, convolution); },
      [&] { plan::activation_named("batchnorm_act_forward", bytes.ConsumeRandomLengthString(12)); },
  };
  try {
    checks[bytes.number(0, static_cast<int64_t>(checks.size()) - 1)]();
  } catch (const c10::Error& error) {
    const std::string message = error.what_without_backtrace();
    const size_t expected = message.find("norm");
    expect(expected < 20 && message.find(": expected ") < 45, "a message of another form: " + message);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes bytes(data, size);
  switch (bytes.number(0, 5)) {
    case 0:
      cut(bytes);
      break;
    case 1:
      memory(bytes);
      break;
    case 2:
      layouts(bytes);
      break;
    default:
      arguments(bytes);
  }
  return 0;
}
