// Makes a process see a lesser processor: LD_PRELOAD=cpuid_mask.so CPUID_MASK=avx2|avxvnni|avx512vnni PROGRAM
//
// Linux lets a thread ask that its CPUID instructions fault (arch_prctl ARCH_SET_CPUID; the flag `cpuid_fault`
// of /proc/cpuinfo). The handler below runs the instruction in the program's stead and clears the bits of what
// the lesser processor lacks. The setting is each thread's own and is inherited by new threads and children;
// exec ends it, and the next program's constructor sets it anew.
//
// What it cannot hide: the C library looked at the processor before any constructor runs, so its memcpy keeps
// the wide registers; XGETBV and /proc/cpuinfo tell what they always tell; caches and clock stay the machine's.
//
// Bits: Intel, "Architecture Instruction Set Extensions Programming Reference", chapter 1, and the CPUID pages of
// the "Software Developer's Manual", volume 2A.

#define _GNU_SOURCE
#include <asm/prctl.h>
#include <cpuid.h>
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#ifndef ARCH_SET_CPUID
#define ARCH_SET_CPUID 0x1012
#endif

// Exit status when the processor cannot be masked; run.py knows it.
enum { CANNOT_MASK = 77 };

#define BIT(n) (1u << (n))

enum { AVX512 = 1, AMX = 2, AVXVNNI = 4 };

static int hidden;  // What is hidden: a set of the above.
static struct sigaction previous;

static long set_cpuid(unsigned long enabled) { return syscall(SYS_arch_prctl, ARCH_SET_CPUID, enabled); }

// Clears in regs (EAX, EBX, ECX, EDX) what CPUID says of hidden features.
static void mask(uint32_t leaf, uint32_t sub, uint32_t regs[4]) {
    uint32_t *a = &regs[0], *b = &regs[1], *c = &regs[2], *d = &regs[3];
    if (leaf == 7 && sub == 0 && hidden & AVX512) {
        // F, DQ, IFMA, PF, ER, CD, BW, VL
        *b &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31));
        *c &= ~(BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14));  // VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ
        *d &= ~(BIT(2) | BIT(3) | BIT(8) | BIT(23));             // 4VNNIW, 4FMAPS, VP2INTERSECT, FP16
    }
    if (leaf == 7 && sub == 0 && hidden & AMX) *d &= ~(BIT(22) | BIT(24) | BIT(25));  // BF16, TILE, INT8
    if (leaf == 7 && sub == 1) {
        if (hidden & AVX512) *a &= ~BIT(5), *d &= ~BIT(19);           // AVX512-BF16; AVX10
        if (hidden & AMX) *a &= ~BIT(21), *d &= ~BIT(8);              // FP16; COMPLEX
        if (hidden & AVXVNNI) *a &= ~(BIT(4) | BIT(23));              // AVX-VNNI, AVX-IFMA
        if (hidden & AVX512) *d &= ~(BIT(4) | BIT(5) | BIT(10));      // VNNI-INT8, NE-CONVERT, VNNI-INT16: newer
    }
    if (leaf == 0xD) {  // State that XCR0 may enable: opmask and the two halves of ZMM; tile configuration and data.
        uint32_t state = (hidden & AVX512 ? 7u << 5 : 0) | (hidden & AMX ? 3u << 17 : 0);
        if (sub == 0) *a &= ~state;
        else if (sub > 1 && sub < 32 && state & BIT(sub)) memset(regs, 0, 4 * sizeof *regs);
    }
    if ((leaf == 0x1D || leaf == 0x1E) && hidden & AMX) memset(regs, 0, 4 * sizeof *regs);  // Tiles, TMUL.
    if (leaf == 0x24 && hidden & AVX512) memset(regs, 0, 4 * sizeof *regs);                 // AVX10.
}

static void on_fault(int signal_number, siginfo_t *info, void *context) {
    int saved = errno;
    greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
    const uint8_t *at = (const uint8_t *)g[REG_RIP];
    // A CPUID that may not run is a general protection fault: the kernel's own signal, without an address. The
    // processor has just read the instruction, so we can.
    if (info->si_code == SI_KERNEL && at[0] == 0x0F && at[1] == 0xA2) {
        uint32_t leaf = (uint32_t)g[REG_RAX], sub = (uint32_t)g[REG_RCX], r[4];
        set_cpuid(1);
        __cpuid_count(leaf, sub, r[0], r[1], r[2], r[3]);
        set_cpuid(0);
        mask(leaf, sub, r);
        g[REG_RAX] = r[0], g[REG_RBX] = r[1], g[REG_RCX] = r[2], g[REG_RDX] = r[3];
        g[REG_RIP] += 2;
        errno = saved;
        return;
    }
    if (previous.sa_flags & SA_SIGINFO) {
        previous.sa_sigaction(signal_number, info, context);
    } else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
        previous.sa_handler(signal_number);
    } else {  // Let the instruction fault again, this time without us.
        sigaction(signal_number, &previous, NULL);
    }
}

__attribute__((constructor)) static void start(void) {
    const char *level = getenv("CPUID_MASK");
    if (!level) return;
    if (!strcmp(level, "avx2")) hidden = AVX512 | AMX | AVXVNNI;
    else if (!strcmp(level, "avxvnni")) hidden = AVX512 | AMX;
    else if (!strcmp(level, "avx512vnni")) hidden = AMX;
    else {
        fprintf(stderr, "cpuid_mask: CPUID_MASK is `%s`, not avx2, avxvnni or avx512vnni\n", level);
        _exit(CANNOT_MASK);
    }
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    if (sigaction(SIGSEGV, &action, &previous) != 0 || set_cpuid(0) != 0) {
        fprintf(stderr, "cpuid_mask: this processor or kernel cannot make CPUID fault: %s\n", strerror(errno));
        _exit(CANNOT_MASK);
    }
}
