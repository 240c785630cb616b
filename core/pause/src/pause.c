/*
 * The process that holds a pod's namespaces. It does nothing but reap what
 * the pod's containers leave to it where they share its PID namespace, and end
 * at once when told to. With -v it says which it is and ends; any other
 * arguments are as good as none. No C library: a few system calls are all it needs.
 */

#if defined(__x86_64__)
enum { SYS_write = 1, SYS_rt_sigprocmask = 14, SYS_wait4 = 61, SYS_rt_sigtimedwait = 128, SYS_exit_group = 231 };
static long call(long n, long a, long b, long c, long d)
{
	long r;
	register long r10 __asm__("r10") = d;
	__asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
	return r;
}
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall run\n");
#elif defined(__aarch64__)
enum { SYS_write = 64, SYS_exit_group = 94, SYS_rt_sigprocmask = 135, SYS_rt_sigtimedwait = 137, SYS_wait4 = 260 };
static long call(long n, long a, long b, long c, long d)
{
	register long x8 __asm__("x8") = n;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
	return x0;
}
__asm__(".globl _start\n_start:\n\tmov x29, xzr\n\tmov x0, sp\n\tbl run\n");
#elif defined(__arm__)
enum { SYS_write = 4, SYS_wait4 = 114, SYS_rt_sigprocmask = 175, SYS_rt_sigtimedwait = 177, SYS_exit_group = 248 };
static long call(long n, long a, long b, long c, long d)
{
	register long r7 __asm__("r7") = n;
	register long r0 __asm__("r0") = a;
	register long r1 __asm__("r1") = b;
	register long r2 __asm__("r2") = c;
	register long r3 __asm__("r3") = d;
	__asm__ volatile("svc 0" : "+r"(r0) : "r"(r7), "r"(r1), "r"(r2), "r"(r3) : "memory");
	return r0;
}
__asm__(".globl _start\n.type _start, %function\n_start:\n\tmov fp, #0\n\tmov lr, #0\n\tmov r0, sp\n\tbic sp, sp, #7\n\tbl run\n");
#elif defined(__s390x__)
enum { SYS_write = 4, SYS_wait4 = 114, SYS_rt_sigprocmask = 175, SYS_rt_sigtimedwait = 177, SYS_exit_group = 248 };
static long call(long n, long a, long b, long c, long d)
{
	register long r1 __asm__("r1") = n;
	register long r2 __asm__("r2") = a;
	register long r3 __asm__("r3") = b;
	register long r4 __asm__("r4") = c;
	register long r5 __asm__("r5") = d;
	__asm__ volatile("svc 0" : "+r"(r2) : "r"(r1), "r"(r3), "r"(r4), "r"(r5) : "memory");
	return r2;
}
/* A function may save registers in the 160 bytes above its stack pointer. */
__asm__(".globl _start\n_start:\n\tlgr %r2, %r15\n\taghi %r15, -160\n\txc 0(8,%r15), 0(%r15)\n\tbrasl %r14, run\n");
#elif defined(__powerpc64__) && _CALL_ELF == 2
enum { SYS_write = 4, SYS_wait4 = 114, SYS_rt_sigprocmask = 174, SYS_rt_sigtimedwait = 176, SYS_exit_group = 234 };
static long call(long n, long a, long b, long c, long d)
{
	register long r0 __asm__("r0") = n;
	register long r3 __asm__("r3") = a;
	register long r4 __asm__("r4") = b;
	register long r5 __asm__("r5") = c;
	register long r6 __asm__("r6") = d;
	/* sc sets the overflow bit in cr0 for an error, whose number is then positive. */
	__asm__ volatile("sc\n\tbns+ 1f\n\tneg %1, %1\n1:"
		: "+r"(r0), "+r"(r3), "+r"(r4), "+r"(r5), "+r"(r6)
		:
		: "r7", "r8", "r9", "r10", "r11", "r12", "cr0", "ctr", "memory");
	return r3;
}
/* The kernel starts a program with its address in r12, from which the TOC is found. */
__asm__(".globl _start\n_start:\n\taddis 2, 12, .TOC.-_start@ha\n\taddi 2, 2, .TOC.-_start@l\n\t.localentry _start, .-_start\n"
	"\tmr 3, 1\n\tclrrdi 1, 1, 4\n\tli 0, 0\n\tstdu 0, -32(1)\n\tmtlr 0\n\tbl run\n\tnop\n");
#elif defined(__riscv) && __riscv_xlen == 64
enum { SYS_write = 64, SYS_exit_group = 94, SYS_rt_sigprocmask = 135, SYS_rt_sigtimedwait = 137, SYS_wait4 = 260 };
static long call(long n, long a, long b, long c, long d)
{
	register long a7 __asm__("a7") = n;
	register long a0 __asm__("a0") = a;
	register long a1 __asm__("a1") = b;
	register long a2 __asm__("a2") = c;
	register long a3 __asm__("a3") = d;
	__asm__ volatile("ecall" : "+r"(a0) : "r"(a7), "r"(a1), "r"(a2), "r"(a3) : "memory");
	return a0;
}
__asm__(".globl _start\n_start:\n\t.option push\n\t.option norelax\n\tla gp, __global_pointer$\n\t.option pop\n"
	"\tmv a0, sp\n\tandi sp, sp, -16\n\tcall run\n");
#else
#error "no system calls known for this architecture"
#endif

enum { STDOUT = 1, SIG_BLOCK = 0, SIGINT = 2, SIGTERM = 15, SIGCHLD = 17, WNOHANG = 1, SET_SIZE = 8 };

/* VERSION is the tag of the image, pause.Ref in Go. */
static const char version[] = "pause " VERSION " (berth)\n";

static void __attribute__((noreturn)) end(void)
{
	for (;;)
		call(SYS_exit_group, 0, 0, 0, 0);
}

/*
 * run gets the stack as the kernel made it: the number of arguments, then the
 * arguments. Signals are blocked and waited for, not caught: a first process
 * gets no signal that it does not handle, and a wait has no race with what it
 * waits for.
 */
__attribute__((used, noreturn)) static void run(long *stack)
{
	/* 64 bits on all architectures: the kernel's set has 64 signals. */
	unsigned long long set = 1ULL << (SIGINT - 1) | 1ULL << (SIGTERM - 1) | 1ULL << (SIGCHLD - 1);

	call(SYS_rt_sigprocmask, SIG_BLOCK, (long)&set, 0, SET_SIZE);
	if (stack[0] == 2) {
		const char *arg = (const char *)stack[2];
		if (arg[0] == '-' && arg[1] == 'v' && arg[2] == 0) {
			call(SYS_write, STDOUT, (long)version, sizeof version - 1, 0);
			end();
		}
	}
	for (;;) {
		while (call(SYS_wait4, -1, 0, WNOHANG, 0) > 0)
			;
		long sig = call(SYS_rt_sigtimedwait, (long)&set, 0, 0, SET_SIZE);
		if (sig == SIGTERM || sig == SIGINT)
			end();
	}
}
