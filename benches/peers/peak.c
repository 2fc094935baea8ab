// The most 8-bit multiply-accumulates a second that one core reaches with the best instruction it has (or is said
// to have: cpuid_mask.c): registers only, no loads. Prints {"instruction": .., "gmacs": ..}.

#include <cpuid.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { STEPS = 20000, TRIALS = 200 };

// Independent sums hide the latency of the addition: twelve, and the operands stay in registers too.
#define EACH(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11)

#define VNNI_WIDE(n) "vpdpbusd %%zmm30, %%zmm31, %%zmm" #n "\n\t"
#define VNNI(n) "%{vex%} vpdpbusd %%ymm14, %%ymm15, %%ymm" #n "\n\t"
// The sum n grows by products that pass through t as pairs in 16 bits.
#define MADD(n, t)                                      \
    "vpmaddubsw %%ymm14, %%ymm15, %%ymm" #t "\n\t"      \
    "vpmaddwd %%ymm13, %%ymm" #t ", %%ymm" #t "\n\t"    \
    "vpaddd %%ymm" #t ", %%ymm" #n ", %%ymm" #n "\n\t"
#define TILE(n, a, b) "tdpbusd %%tmm" #b ", %%tmm" #a ", %%tmm" #n "\n\t"

#define LOOP(body)                                                                                      \
    long steps = STEPS;                                                                                 \
    __asm__ volatile("1:\n\t" body "dec %0\n\tjnz 1b\n\t" : "+r"(steps) : :                            \
                     "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",      \
                     "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15")

// Each returns the multiply-accumulates that it did.
static double maddubs(void) {
    LOOP(MADD(0, 4) MADD(1, 5) MADD(2, 6) MADD(3, 7) MADD(8, 9) MADD(10, 11));
    return 6.0 * 32 * STEPS;
}
static double vnni(void) {
    LOOP(EACH(VNNI));
    return 12.0 * 32 * STEPS;
}
static double vnni_wide(void) {
    LOOP(EACH(VNNI_WIDE));
    return 12.0 * 64 * STEPS;
}
static double tiles(void) {
    LOOP(TILE(0, 4, 6) TILE(1, 4, 7) TILE(2, 5, 6) TILE(3, 5, 7));
    return 4.0 * 16 * 16 * 64 * STEPS;
}

// Eight tiles of 16 rows of 64 bytes; Linux lends the tile data on request.
static int tiles_ready(void) {
    struct { uint8_t palette, start, zero[14]; uint16_t bytes[16]; uint8_t rows[16]; } shape;
    if (syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18) != 0) return 0;
    memset(&shape, 0, sizeof shape);
    shape.palette = 1;
    for (int i = 0; i < 8; i++) shape.bytes[i] = 64, shape.rows[i] = 16;
    __asm__ volatile("ldtilecfg %0" : : "m"(shape));
    return 1;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

int main(void) {
    unsigned a = 0, b = 0, c = 0, d = 0, a1 = 0, b1 = 0, c1 = 0, d1 = 0;
    __get_cpuid_count(7, 0, &a, &b, &c, &d);
    __get_cpuid_count(7, 1, &a1, &b1, &c1, &d1);
    const char *name;
    double (*run)(void);
    if (d >> 25 & 1 && tiles_ready()) name = "AMX tdpbusd", run = tiles;
    else if (c >> 11 & 1) name = "AVX-512 vpdpbusd", run = vnni_wide;
    else if (a1 >> 4 & 1) name = "AVX vpdpbusd", run = vnni;
    else if (b >> 5 & 1) name = "AVX2 vpmaddubsw", run = maddubs;
    else return 1;
    double best = 0;
    for (int i = 0; i < TRIALS; i++) {
        double start = now(), rate = run() / 1e9 / (now() - start);
        if (rate > best) best = rate;
    }
    printf("{\"instruction\": \"%s\", \"gmacs\": %.1f}\n", name, best);
    return 0;
}
