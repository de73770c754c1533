/* Force-included into every C++ file of llama.cpp (g++ -include), by scripts/lib/venv.sh and by
 * the benchmark's peers. Changes nothing on CPUs without AMX and AVX-512 FP16.
 *
 * 1. GCC before 14 tells its optimiser that _tile_loadconfig reads 8 bytes. It reads 64: the
 * stores of the tiles' shapes are dropped as dead, and ggml's AMX kernels end in SIGSEGV or
 * SIGILL (llama.cpp #26954). With all 64 bytes named they work, and prefill of a Q4_1 model is
 * several times as fast as without AMX.
 *
 * 2. With AVX-512 FP16, ggml takes half-precision numbers 128 at a time and the rest one by one
 * through a table. Heads of 64, those of most small models, are all rest: decoding four
 * sequences of 500 tokens with flash attention took 89 ms a step, and 37 ms with the plain
 * AVX-512 kernels, which take 64 at a time and add up in single precision besides.
 */
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#define _tile_loadconfig(config) \
    __asm__ volatile("ldtilecfg\t%X0" : : "m"(*(const char(*)[64])(config)))
#endif
#ifndef LBHOST_WITH_FP16_VECTORS /* the benchmark's `stock` peer */
#undef __AVX512FP16__
#endif
