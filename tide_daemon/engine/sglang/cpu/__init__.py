"""SGLang on a CPU without AMX: stand-ins for its kernels, and faster layers.

Nothing here is used on a GPU. `stand_ins/` is put on PYTHONPATH by `launch_env` for CPU runs alone, because SGLang's
own CPU kernels (`sgl_kernel`) exist only in its source tree; `speed` is hooks of the plug-in.
"""
