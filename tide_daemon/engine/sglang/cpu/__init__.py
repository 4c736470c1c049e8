"""SGLang on a CPU without AMX: stand-ins for its kernels, faster layers, true sampling in verification.

Nothing here is used on a GPU. `stand_ins/` is put on PYTHONPATH by `launch_env` for CPU runs alone, because SGLang's
own CPU kernels (`sgl_kernel`) exist only in its source tree; `speed` and `sampling` are hooks of the plug-in.
"""
