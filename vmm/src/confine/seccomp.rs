//! System call filters (`Documentation/userspace-api/seccomp_filter.rst`): what a thread may ask the kernel for, as a
//! list; whatever else it asks for ends the process.
//!
//! There is one for each kind of thread. A thread has its maker's filter too, so the control thread's, which makes the
//! others, allows what any of them needs. A forked process has the filters of the thread that forked.
//!
//! The C library tries some calls for which it knows another way, and some that only open files; these are refused
//! as if the kernel did not have them.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use seccompiler::SeccompCmpArgLen::{Dword, Qword};
use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

use crate::vcpu::gate::kick_signal;

/// Every number fits.
fn flags(flags: libc::c_int) -> u64 {
    u64::from(flags.cast_unsigned())
}

/// A condition on an argument: which, how much of it, and what it must be.
type Must = (u8, SeccompCmpArgLen, SeccompCmpOp, u64);
/// What is allowed of a call: all of it, or what meets one of these.
type Call = (libc::c_long, Vec<Must>);

fn any(calls: &[libc::c_long]) -> Vec<Call> {
    calls.iter().map(|call| (*call, Vec::new())).collect()
}

fn one_of(call: libc::c_long, argument: u8, values: &[u64]) -> Call {
    let must = |value: &u64| (argument, Dword, Eq, *value);
    (call, values.iter().map(must).collect())
}

/// Memory, locks, time, the end of a thread, a panic.
fn common() -> Vec<Call> {
    let mut calls = any(&[
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_readv,
        libc::SYS_writev,
        libc::SYS_pread64,
        libc::SYS_pwrite64,
        libc::SYS_lseek,
        libc::SYS_ftruncate,
        libc::SYS_close,
        libc::SYS_futex,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_brk,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_restart_syscall,
        libc::SYS_sched_yield,
        libc::SYS_sched_getaffinity,
        libc::SYS_clock_gettime,
        libc::SYS_clock_nanosleep,
        libc::SYS_nanosleep,
        libc::SYS_gettimeofday,
        libc::SYS_getrandom,
        libc::SYS_gettid,
        libc::SYS_getpid,
        libc::SYS_set_robust_list,
        libc::SYS_rseq,
        libc::SYS_membarrier,
        libc::SYS_exit,
        libc::SYS_exit_group,
        // A device's reset closes what it had.
        libc::SYS_epoll_ctl,
        libc::SYS_shutdown,
    ]);
    // Let through to the filter that refuses them. In any thread: a heap that shrinks, for example, looks at
    // /proc/sys/vm/overcommit_memory (malloc/arena.c, check_may_shrink_heap).
    calls.extend(any(&REFUSED));
    // Nothing that was written can be executed.
    let not_executable = |call| (call, vec![(2, Dword, MaskedEq(flags(libc::PROT_EXEC)), 0)]);
    calls.extend([not_executable(libc::SYS_mmap), not_executable(libc::SYS_mprotect)]);
    // Kicks of vCPUs, and abort(3). Whom, Landlock sees to.
    let signals = [flags(kick_signal()), flags(libc::SIGABRT)];
    calls.push(one_of(libc::SYS_tgkill, 2, &signals));
    let commands = [
        libc::F_DUPFD_CLOEXEC,
        libc::F_GETFD,
        libc::F_SETFD,
        libc::F_GETFL,
        libc::F_SETFL,
    ];
    calls.push(one_of(libc::SYS_fcntl, 1, &commands.map(flags)));
    calls.push(one_of(libc::SYS_prctl, 0, &NAMES.map(flags)));
    calls.push((
        libc::SYS_ioctl,
        vec![
            // KVM's (include/uapi/linux/kvm.h), on whatever is KVM's.
            (1, Dword, MaskedEq(0xFF00), 0xAE00),
            // A TAP's offloads.
            (1, Dword, Eq, 0x4004_54D0),
            (1, Dword, Eq, libc::FIONBIO),
        ],
    ));
    calls
}

/// Disks, sockets, the network.
fn io() -> Vec<Call> {
    let mut calls = common();
    calls.extend(any(&[
        libc::SYS_epoll_wait,
        libc::SYS_epoll_pwait,
        libc::SYS_preadv,
        libc::SYS_pwritev,
        libc::SYS_fdatasync,
        libc::SYS_fsync,
        libc::SYS_fallocate,
        libc::SYS_fstat,
        libc::SYS_statx,
        libc::SYS_newfstatat,
        libc::SYS_accept4,
        libc::SYS_recvfrom,
        libc::SYS_sendto,
        libc::SYS_recvmsg,
        libc::SYS_sendmsg,
        libc::SYS_getsockopt,
    ]));
    calls
}

/// Making machines and processes, and talking to the owner.
fn controlling() -> Vec<Call> {
    let mut calls = io();
    calls.extend(any(&[
        libc::SYS_poll,
        libc::SYS_ppoll,
        libc::SYS_listen,
        libc::SYS_eventfd2,
        libc::SYS_epoll_create1,
        libc::SYS_dup,
        libc::SYS_dup2,
        libc::SYS_dup3,
        libc::SYS_fchmod,
        libc::SYS_set_tid_address,
        // The next thread's own filter; a filter only ever takes away.
        libc::SYS_seccomp,
    ]));
    let limits = [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO];
    calls.push(one_of(libc::SYS_setsockopt, 2, &limits.map(flags)));
    let more = NAMES
        .into_iter()
        .chain([libc::PR_GET_TID_ADDRESS, libc::PR_SET_NO_NEW_PRIVS]);
    calls.retain(|(call, _)| *call != libc::SYS_prctl);
    calls.push(one_of(libc::SYS_prctl, 0, &more.map(flags).collect::<Vec<_>>()));
    calls.push((
        libc::SYS_clone,
        [THREAD, crate::process::FORK, crate::process::FORK_PLAIN]
            .map(|how| (0, Qword, Eq, flags(how)))
            .to_vec(),
    ));
    calls
}

/// `PR_GET_AUXV` (include/uapi/linux/prctl.h): what the kernel told this program when it was started.
const PR_GET_AUXV: libc::c_int = 0x4155_5856;
/// What any thread may ask of prctl(2): its name, its memory's, and the page size.
const NAMES: [libc::c_int; 3] = [libc::PR_SET_NAME, libc::PR_SET_VMA, PR_GET_AUXV];

/// How the C library makes a thread (`create_thread` in nptl/pthread_create.c).
const THREAD: libc::c_int = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID;

/// Calls that the kernel is not to have.
const REFUSED: [libc::c_long; 7] = [
    // Its flags are in memory, where no filter sees them. The C library falls back to clone.
    libc::SYS_clone3,
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_getcwd,
    libc::SYS_prlimit64,
];

fn compile(calls: Vec<Call>, others: SeccompAction, these: SeccompAction) -> Result<BpfProgram, String> {
    let failed = |error: seccompiler::BackendError| error.to_string();
    let mut rules = BTreeMap::new();
    for (call, musts) in calls {
        let mut alternatives = Vec::new();
        for (argument, length, operator, value) in musts {
            let condition = SeccompCondition::new(argument, length, operator, value).map_err(failed)?;
            alternatives.push(SeccompRule::new(vec![condition]).map_err(failed)?);
        }
        rules.insert(call, alternatives);
    }
    SeccompFilter::new(rules, others, these, TargetArch::x86_64)
        .and_then(TryInto::try_into)
        .map_err(failed)
}

struct Filters {
    io: BpfProgram,
    vcpu: BpfProgram,
}

/// Made before the control thread's is in force; absent in a process that has none.
static FILTERS: OnceLock<Filters> = OnceLock::new();

/// Filters this thread, the only one of its process, and all it will make.
pub(super) fn control() -> Result<(), String> {
    let list = |calls| compile(calls, SeccompAction::KillProcess, SeccompAction::Allow);
    let refused = SeccompAction::Errno(flags(libc::ENOSYS).try_into().unwrap_or(u32::MAX));
    let refused = compile(any(&REFUSED), SeccompAction::Allow, refused)?;
    let control = list(controlling())?;
    let filters = Filters {
        io: list(io())?,
        vcpu: list(common())?,
    };
    // This one first: the other does not let it through.
    for filter in [&refused, &control] {
        apply_filter(filter).map_err(|error| error.to_string())?;
    }
    // Nobody else sets it.
    let _ = FILTERS.set(filters);
    Ok(())
}

/// Filters this thread for what the I/O thread does, if its process is filtered.
pub fn io_thread() {
    filter(|filters| &filters.io);
}

/// Filters this thread for what a vCPU's does, if its process is filtered.
pub fn vcpu_thread() {
    filter(|filters| &filters.vcpu);
}

fn filter(which: impl FnOnce(&Filters) -> &BpfProgram) {
    if let Some(filters) = FILTERS.get()
        && let Err(error) = apply_filter(which(filters))
    {
        // It has the control thread's.
        tracing::warn!(%error, "this thread has no system call filter of its own");
    }
}
