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
	unsigned long set = 1UL << (SIGINT - 1) | 1UL << (SIGTERM - 1) | 1UL << (SIGCHLD - 1);

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
