"""Tests of the real torch_npu wheel on stand-ins for CANN's libraries: README.md says what they prove."""
