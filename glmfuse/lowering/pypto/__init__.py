"""PyPTO kernels, and running them without an NPU: nothing outside this folder imports pypto.

pypto's licence (CANN Open Software License 2.0) allows it only in software for Ascend processors; so it is
an optional extra, and this folder is loaded only when it is asked for.
"""
