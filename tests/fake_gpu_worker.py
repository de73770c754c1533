"""`python -m fake_gpu_worker --control-fd N`. See fake_child.py."""

from fake_child import gpu_worker, main

if __name__ == "__main__":
    main(gpu_worker)
