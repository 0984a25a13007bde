"""How new weights reach the policy that draws the rollouts.

`in_process.py`: it is the trained model itself. `lora.py`: an adapter that a vLLM server loads
under a new name each time. `disk.py`: a folder that the server reads again. `colocate.py`: vLLM in
this process. `nccl.py`: a vLLM server on other GPUs.
"""
