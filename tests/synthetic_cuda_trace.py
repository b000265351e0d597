"""A synthetic CUDA trace: no GPU has recorded it.

It follows the format that torch.profiler documents: operators on host threads, launches (cuda_runtime) inside them,
kernels on a process of the device with the launch's correlation id, and kernel names of cuDNN, ATen and my_ops.
"""

from __future__ import annotations

from typing import Any

from trace_events import event, memory

IMAGE = [4, 8, 16, 16]
BYTES = 4 * 8 * 16 * 16 * 2  # float16
FORWARD_ARGUMENTS = {
    "Input Dims": [IMAGE, [8], [8], [8], [8], [], [], [], []],
    "Input type": ["c10::Half", "float", "float", "float", "float", "Scalar", "Scalar", "Scalar", "Scalar"],
    "Concrete Inputs": ["", "", "", "", "", "True", "0.1", "1e-05", "True"],
}
BACKWARD_ARGUMENTS = {
    "Input Dims": [IMAGE, IMAGE, [8], [8], [8], [8], [8], [], []],
    "Input type": ["c10::Half", "c10::Half", "float", "float", "float", "float", "float", "Scalar", "Scalar"],
}
CUDNN = "void cudnn::bn_fw_tr_1C11_kernel_NCHW<__half, float, 512, true, 1>(cudnnTensorStruct, __half const*)"
CUDNN_BACK = "void cudnn::bn_bw_1C11_kernel_new<__half, float, float2, 512, true, 1>(float)"
ATEN = "void at::native::batch_norm_collect_statistics_kernel<at::native::InvStd, float, float, float, int>(int)"
ATEN_SECOND = "void at::native::batch_norm_transform_input_kernel<float, float, float, true, int>(int)"


def launch(correlation: int, start: float, kernel: str, begin: float, duration: float, tid: int = 1) -> list[Any]:
    """The launch and its kernel."""
    return [
        event("cudaLaunchKernel", start, 5, tid=tid, cat="cuda_runtime", correlation=correlation, cbid=211),
        event(kernel, begin, duration, tid=7, cat="kernel", correlation=correlation, stream=7, device=0) | {"pid": 0},
        {"ph": "s", "id": correlation, "pid": 1, "tid": tid, "ts": start, "cat": "ac2g", "name": "ac2g"},
    ]


EVENTS = [
    event("ProfilerStep#5", 0, 1000, cat="user_annotation"),
    event("ProfilerStep#5", 60, 900, tid=7, cat="gpu_user_annotation") | {"pid": 0},
    # cuDNN, forward: one kernel, 40 us after its launch returned.
    event("my_ops.module: stem.norm", 10, 90, cat="user_annotation"),
    event("aten::batch_norm", 15, 80, **FORWARD_ARGUMENTS, **{"Sequence number": 3, "Fwd thread id": 0}),
    event("aten::cudnn_batch_norm", 20, 70, **FORWARD_ARGUMENTS, **{"Sequence number": 3}),
    memory(25, 4096, 10_000, device=1),
    *launch(11, 40, CUDNN, 85, 30),
    # ATen, forward: two kernels with 6 us between them, the first 15 us after its launch.
    event("aten::native_batch_norm", 200, 60, **FORWARD_ARGUMENTS, **{"Sequence number": 4}),
    *launch(12, 210, ATEN, 230, 20),
    *launch(13, 230, ATEN_SECOND, 256, 24),
    # A convolution, which is none of it.
    event("aten::conv2d", 300, 50),
    *launch(14, 310, "sm90_xmma_fprop_implicit_gemm", 330, 100),
    # cuDNN, backward, on autograd's thread.
    event("autograd::engine::evaluate_function: CudnnBatchNormBackward0", 500, 100, tid=2, **{"Sequence number": 3}),
    event("aten::cudnn_batch_norm_backward", 510, 80, tid=2, **BACKWARD_ARGUMENTS),
    *launch(15, 520, CUDNN_BACK, 600, 50, tid=2),
    # Inductor's kernel.
    event("triton_red_fused__native_batch_norm_legit_relu_0", 700, 20),
    *launch(16, 705, "triton_red_fused__native_batch_norm_legit_relu_0", 730, 10),
    # Two copies of the input, 16 KiB read and written in 8 us and 16 us.
    *(
        each
        for number, duration in ((17, 8), (18, 16), (19, 8))
        for each in (
            event("my_ops.copy", 1100 + 50 * number, 20, cat="user_annotation"),
            event(
                "aten::copy_",
                1101 + 50 * number,
                18,
                **{"Input Dims": [IMAGE, IMAGE, []], "Input type": ["c10::Half", "c10::Half", "Scalar"]},
            ),
            event("cudaMemcpyAsync", 1102 + 50 * number, 5, cat="cuda_runtime", correlation=number),
            event("Memcpy DtoD", 1110 + 50 * number, duration, tid=7, cat="gpu_memcpy", correlation=number)
            | {"pid": 0},
        )
    ),
]
