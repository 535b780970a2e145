"""What torch computes slower than a CPU with AVX-512 can, in C++, for inference."""
