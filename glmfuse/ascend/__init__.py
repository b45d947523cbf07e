"""What of Ascend is on this machine, and how builds of torch_npu differ; imports neither torch nor torch_npu."""
