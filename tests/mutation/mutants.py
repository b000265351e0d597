"""Wrong formulas, each of which some test must notice.

A place is exact text of a source with `{}` where the expression stands; of the text there must be one in the file. All
mutants are compiled into one library, which chooses by a variable at run time: so a mutant is of its expression's type.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    file: str  # below cpp/src
    place: str
    right: str
    wrong: str
    tests: tuple[str, ...]  # that run, in this order, until one fails

    def __str__(self) -> str:
        return f"{self.file}: {' '.join(self.right.split())} -> {self.wrong}"


FORWARD = ("test_forward.py",)
NUMERICS = ("test_numerics.py",)
BACKWARD = ("test_backward.py",)
PHASES = ("test_phases.py",)
ACT = ("test_act.py",)
IN_PLACE = ("test_in_place.py",)
OVERWRITTEN = ("test_overwritten_gradients.py",)
SAVED = ("test_act.py", "test_autograd.py")
INSTANCE = ("test_instance_norm.py",)
SECOND = ("test_autograd.py", "test_transforms.py")
TANGENTS = ("test_forward_mode.py",)


def _of(file: str, tests: tuple[str, ...], *formulas: tuple[str, str, str]) -> list[Mutant]:
    return [Mutant(file, place, right, wrong, tests) for place, right, wrong in formulas]


MUTANTS = [
    # Statistics of parts joined, eps, running statistics, the mean that is kept apart.
    *_of(
        "math/normalization.h",
        PHASES,
        ("share = {} / static_cast<A>(count);", "static_cast<A>(b.count)", "static_cast<A>(a.count)"),
        ("return {{},", "a.mean + delta * share", "a.mean - delta * share"),
        (" {}, count};", "a.m2 + b.m2 + delta * delta * share * static_cast<A>(a.count)", "a.m2 + b.m2"),
    ),
    *_of(
        "math/normalization.h",
        FORWARD,
        ("return {};", "A(1) / std::sqrt(var + eps)", "A(1) / (std::sqrt(var) + eps)"),
        (
            "return {};",
            "(A(1) - momentum) * running + momentum * batch",
            "momentum * running + (A(1) - momentum) * batch",
        ),
        ("scale = {};\n  return {center", "gamma * invstd", "invstd"),
    ),
    *_of("math/normalization.h", NUMERICS, ("static_cast<A>({})};", "beta - (mean - center) * scale", "double(beta)")),
    *_of(
        "math/normalization.h",
        BACKWARD,
        (
            "static_cast<A>({}),\n          static_cast<A>(-per",
            "-per_value * invstd * sum_dy_xhat",
            "per_value * invstd * sum_dy_xhat",
        ),
        ("static_cast<A>({})};\n}\n\n}", "-per_value * scale * sum_dy", "-scale * sum_dy"),
        ("const double scale = {};\n  const double per", "static_cast<double>(gamma) * invstd", "double(invstd)"),
    ),
    # M or M - 1, and the moments.
    *_of(
        "cpu/simd/channels.h",
        FORWARD,
        ("per_value = 1.0 / static_cast<double>({});", "count", "count - 1"),
        ("unbiased = 1.0 / static_cast<double>({});", "count - 1", "count"),
    ),
    *_of(
        "cpu/simd/moments.h",
        FORWARD,
        ("mean[i] = {};", "pivot[i] + shift", "pivot[i] - shift"),
        ("m2[i] = {};", "sums.second[i] - sums.first[i] * shift", "sums.second[i]"),
    ),
    *_of(
        "cpu/simd/moments.h",
        NUMERICS,
        ("return {};", "first * first <= 3 * n * m2 && m2 - m2 == 0", "true"),
        ("return {};", "first * first > 10 * n * m2", "false"),
    ),
    # dx, by runs and by rows.
    *_of(
        "cpu/simd/backward_phases.h",
        BACKWARD,
        (
            "return {};",
            "(g + d * x_scale[r]) * dy_scale[r] + shift[r]",
            "(g - d * x_scale[r]) * dy_scale[r] + shift[r]",
        ),
        ("return {};", "(g + d * x_scale[r]) * dy_scale[r] + shift[r]", "(g + d * x_scale[r]) * dy_scale[r]"),
        ("return {};", "(g + d * x_scale) * dy_scale + shift", "(g - d * x_scale) * dy_scale + shift"),
        ("return {};", "(g + d * x_scale) * dy_scale + shift", "(g + d * x_scale) * dy_scale"),
    ),
    # Activations, residuals, masks.
    *_of(
        "math/epilogue.h",
        ACT,
        ("z : z * {};", "slope", "A(1)"),
        ("return dy * {};", "slope", "A(1)"),
        ("Math::expm1(exponent<Math, A>(z)) * {};", "alpha", "A(1)"),
        ("(Math::exp(exponent<Math, A>(z)) * {});", "alpha", "-alpha"),
        ("(z * z * ({}) + kLinear)", "3 * kCubic", "kCubic"),
        ("(e * s) + {})", "A(1)", "A(0)"),
        ("static_cast<A>({} * 1.59", "0.044715", "0.04"),
    ),
    *_of(
        "cpu/simd/epilogues.h",
        ACT,
        ("identity) return {};", "1", "0"),
        ("bits = {};", "read_bits<T>(mask, i, lanes)", "~read_bits<T>(mask, i, lanes)"),
        ("lanes, {});", "positive_values<T>(inside)", "positive_values<T>(Pack<T>{} - inside)"),
        (
            "residual ? {} : z;",
            "z + load_ahead(residual + i, lanes, Pack<T>{})",
            "z - load_ahead(residual + i, lanes, Pack<T>{})",
        ),
    ),
    # Chunks and their order, scratch, the counter.
    *_of(
        "cpu/partials.h",
        NUMERICS + FORWARD,
        ("second(chunk) + c0,\n                                   {}, c1", "values(chunk)", "values(0)"),
        ("(int64_t chunk = {}; chunk < part_.chunks(); ++chunk) {\n      kernel_table().add", "1", "2"),
    ),
    *_of(
        "cpu/coefficients.h",
        BACKWARD,
        ("dy_scale[c] = {};", "channels_.gamma[c] * channels_.invstd[c]", "channels_.invstd[c]"),
    ),
    *_of("cpu/coefficients.h", ACT, ("scale_[c] = {};", "gammas.data()[c] * invstds.data()[c]", "invstds.data()[c]")),
    *_of(
        "cpu/coefficients.h",
        FORWARD,
        ("1.0 / static_cast<double>({})", "*counter_ + 1", "*counter_"),
        ("if ({}) ++*counter_;", "counter_", "nullptr"),
    ),
    *_of(
        "cpu/phases_kernel.cpp",
        PHASES,
        ("m2s[part * channels + c], {}}", "counts[part]", "counts[0]"),
        ("scales[c] = {};", "gammas.data()[c] * invstds.data()[c]", "invstds.data()[c]"),
        (
            "read<double>(sums_xhat),\n                                    {});",
            "*read<int64_t>(count)",
            "values_per_channel(x)",
        ),
        ("merged + channels,\n                                   std::max({}, int64_t{1})", "total", "total - 1"),
    ),
    # Every image by itself, and all of them together.
    *_of(
        "cpu/instance_kernel.cpp",
        INSTANCE,
        ("share = 1.0 / static_cast<double>({});", "images", "1"),
        ("share / static_cast<double>({})", "part.values - 1", "part.values"),
        ("(int64_t n = {}; n < images", "1", "2"),
        ("kernels.finish_forward(scratch.channels_of_image({})", "first", "0"),
        ("scratch.training({}), stream", "part.first_result(region)", "0"),
    ),
    *_of("plan/partition.cpp", INSTANCE, ("const int64_t first = {};", "image * values", "0")),
    *_of("plan/partition.cpp", FORWARD, ("first + std::min({}, b + chunk)", "values", "values - 1")),
    # In place: the inverse, the gradient from the output, and where there is none.
    *_of(
        "math/epilogue.h",
        IN_PLACE,
        ("y : y * {};", "(A(1) / slope)", "slope"),
        ("dy * ({});", "y + alpha", "y"),
        ("at_most<Math>(A(0), y) / {}));", "alpha", "A(1)"),
    ),
    *_of(
        "cpu/in_place_kernel.cpp",
        IN_PLACE,
        ("per_gamma[c] = {};", "A(1) / channels.gamma[c]", "A(1)"),
        ("static_cast<A>({} * sum_dz", "-per_value * per_gamma[c]", "-per_value"),
    ),
    *_of(
        "composite/in_place_kernel.cpp",
        IN_PLACE,
        ("at::leaky_relu(y, {});", "1 / slope", "slope"),
        ("if (slope != 1) z.div_({});", "slope", "1"),
        ("({}).reciprocal()", "gamma ? gamma->to(wide) * invstd : invstd", "invstd"),
        ("({}).to(y.scalar_type()));\n  }", "kept_input.to(wide) - means", "kept_input.to(wide)"),
    ),
    *_of(
        "plan/invertible.cpp",
        IN_PLACE,
        ("<= {}).logical_and(", "precision.allowed", "1e300"),
        ("least_z(x, gamma, beta, mean, invstd)) * ({});", "precision.roundoff + smallest", "precision.roundoff"),
    ),
    # When a gradient's memory is that of a result.
    *_of(
        "autograd/node.h",
        OVERWRITTEN,
        ("is_enabled() && {} &&", "gradient.use_count() == 1", "true"),
    ),
    # Saved tensors, and gradients wider than their argument.
    *_of(
        "autograd/node.h",
        SAVED,
        ("if ({}) return tensor;", "as_contiguous.is_contiguous()", "true"),
        (
            "in_dtype(*gamma, {});",
            "c10::promoteTypes(gamma->scalar_type(), constants.beta_dtype)",
            "gamma->scalar_type()",
        ),
    ),
    *_of(
        "cpu/act_kernel.cpp",
        OVERWRITTEN,
        (
            "input_takes = {};",
            "taken.defined() && output_mask[0] && !output_mask[1]",
            "taken.defined() && output_mask[0]",
        ),
    ),
    # Second derivatives.
    *_of(
        "autograd/formulas.cpp",
        SECOND,
        ("inner = {};", "sum_u_dy - sum_u * m1 - sum_u_xhat * m2", "sum_u_dy - sum_u * m1"),
        ("out.x = {};", "-u * per_channel(slope, u)", "u * per_channel(slope, u)"),
        ("out.mean = {};", "slope * sum_u", "-slope * sum_u"),
        ("out.invstd = in.times_gamma({});\n  out.m1", "inner - sum_u_xhat * m2", "inner"),
        ("out.m1 = {};", "-in.scale() * sum_u", "in.scale() * sum_u"),
        ("out.m2 = {};", "-in.scale() * sum_u_xhat", "-in.invstd * sum_u_xhat"),
        ("in.dy * per_channel(slope, in.dy),\n          {},", "-slope * in.sum_dy()", "slope * in.sum_dy()"),
        (
            "slope = {};\n    const",
            "-grad_invstd * invstd * invstd * invstd / count",
            "-grad_invstd * invstd * invstd / count",
        ),
        ("gradient = per_channel({}, x)", "grad_mean / count", "grad_mean"),
    ),
    *_of(
        "autograd/batchnorm_kernel.cpp",
        SECOND,
        ("if ({}) {\n      out[0] = sum_of", "grads.size() > 1 && wants(0)", "false"),
        ("m2 = {};", "in.sum_dy_xhat() / count", "in.sum_dy() / count"),
    ),
    # Tangents.
    *_of(
        "autograd/formulas.cpp",
        TANGENTS,
        ("per_channel(invstd, centered) +\n         {};", "per_channel(t.invstd, centered) * centered", "Term()"),
        ("return {} + (gamma", "t.gamma * invstd", "Term()"),
        ("wide(m2) - {};", "wide(m2_tangent) * xhat", "Term()"),
        ("wide(in.scale()) * ({}) + wide(beta", "t.x - wide(t.mean)", "t.x"),
    ),
    *_of(
        "autograd/forward_formulas.cpp",
        TANGENTS,
        ("out.invstd = {};", "-invstd * invstd * sum_xhat / count", "-invstd * sum_xhat / count"),
    ),
]
