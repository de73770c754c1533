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
 *
 * 3. A decode step is bound by how fast a core gets the weights. ggml's AMX kernels (its only users
 * of this load, but for four) read them in runs of 5 KB, which the processor's own prefetcher
 * follows late. Fetched 64 KB ahead, one sequence decodes 1.3 times as fast, four 1.1 times.
 */
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#define _tile_loadconfig(config) \
    __asm__ volatile("ldtilecfg\t%X0" : : "m"(*(const char(*)[64])(config)))
#endif
#ifndef LBHOST_STOCK /* the benchmark's `stock` peer, which has the first only */
#undef __AVX512FP16__
#if defined(__AMX_TILE__) && defined(__AVX512F__)
#include <immintrin.h>
static inline __m512i lbhost_load_fetching_ahead(const void *from) {
    _mm_prefetch((const char *)from + 65536, _MM_HINT_T1);
    return _mm512_loadu_si512(from);
}
#define _mm512_loadu_si512(from) lbhost_load_fetching_ahead(from)
#endif
#endif
