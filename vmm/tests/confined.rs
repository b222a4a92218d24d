//! What a confined process tries and does not get.
//!
//! The test program starts itself again with the name of an attempt. That process confines itself as `spore-vm` does,
//! tries, and says what came of it. Most attempts are made with everything, under the filter of each kind of thread, which
//! ends the process, and once without filters, where the rest has to refuse.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::ffi::CString;
use std::io;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Output};
use std::time::Duration;

use libtest_mimic::{Arguments, Trial};
use spore_vmm::confine::{self, User, seccomp};

/// What an attempt is given: where the outside is.
struct Outside {
    port: u16,
    socket: PathBuf,
    abstract_name: String,
    /// The directory of the socket, opened before, as nothing of the product is.
    directory: OwnedFd,
    parent: libc::pid_t,
}

type Attempt = fn(&Outside) -> io::Result<()>;

fn result(returned: impl Into<i64>) -> io::Result<()> {
    match returned.into() {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn c(text: &str) -> CString {
    CString::new(text).unwrap()
}

/// Not one of these may succeed, nor may it be refused for want of the thing tried.
const ATTEMPTS: &[(&str, Attempt)] = &[
    ("open_a_file_of_the_host", |_| {
        std::fs::read("/etc/passwd").map(drop)
    }),
    ("open_one_below_a_directory_that_is_open", |outside| {
        let name = c("file");
        // SAFETY: a live descriptor and a string that ends.
        result(unsafe { libc::openat(outside.directory.as_raw_fd(), name.as_ptr(), libc::O_RDONLY) })
    }),
    ("make_a_file", |_| std::fs::write("/file", "x")),
    ("look_at_its_own_process_files", |_| {
        std::fs::read_dir("/proc/self").map(drop)
    }),
    ("open_kvm_again", |_| std::fs::File::open("/dev/kvm").map(drop)),
    ("connect_to_a_socket_file", |outside| {
        UnixStream::connect(&outside.socket).map(drop)
    }),
    ("connect_to_an_abstract_socket", |outside| {
        let name = SocketAddr::from_abstract_name(&outside.abstract_name)?;
        UnixStream::connect_addr(&name).map(drop)
    }),
    ("connect_to_a_port", |outside| {
        TcpStream::connect(("127.0.0.1", outside.port)).map(drop)
    }),
    ("send_a_datagram", |_| {
        UdpSocket::bind("0.0.0.0:0")?
            .send_to(b"x", "192.0.2.1:53")
            .map(drop)
    }),
    ("signal_another_process", |outside| {
        // SAFETY: sends nothing, only asks whether it may.
        result(unsafe { libc::kill(outside.parent, 0) })
    }),
    ("trace_another_process", |outside| {
        // SAFETY: touches no memory of ours.
        result(unsafe { libc::ptrace(libc::PTRACE_SEIZE, outside.parent, 0, 0) })
    }),
    ("read_another_processs_memory", |outside| {
        let mut byte = 0u8;
        let part = libc::iovec {
            iov_base: (&raw mut byte).cast(),
            iov_len: 1,
        };
        // SAFETY: both vectors are alive; the kernel checks the other's address.
        result(
            unsafe { libc::process_vm_readv(outside.parent, &raw const part, 1, &raw const part, 1, 0) }
                as i64,
        )
    }),
    ("execute_a_program", |_| {
        Command::new("/bin/true").status().map(drop)
    }),
    ("mount_something", |_| {
        let (what, place) = (c("tmpfs"), c("/"));
        // SAFETY: strings that end, and no data.
        result(unsafe { libc::mount(what.as_ptr(), place.as_ptr(), what.as_ptr(), 0, std::ptr::null()) })
    }),
    ("become_root", |_| {
        // SAFETY: takes numbers. Asked of the kernel, since the C library would look for other threads.
        result(unsafe { libc::syscall(libc::SYS_setresuid, 0, 0, 0) })
    }),
    ("join_the_hosts_namespaces", |outside| {
        // SAFETY: a number and no flags.
        let process = unsafe { libc::syscall(libc::SYS_pidfd_open, outside.parent, 0) };
        result(process)?;
        // SAFETY: a live descriptor.
        result(unsafe {
            libc::setns(
                i32::try_from(process).unwrap(),
                libc::CLONE_NEWNS | libc::CLONE_NEWNET,
            )
        })
    }),
    ("load_a_kernel_module", |_| {
        let none = c("");
        // SAFETY: no image, which is looked at after the privileges are.
        result(unsafe { libc::syscall(libc::SYS_init_module, std::ptr::null::<u8>(), 0, none.as_ptr()) })
    }),
    ("raise_its_limits", |_| {
        let limit = libc::rlimit {
            rlim_cur: 1 << 20,
            rlim_max: 1 << 20,
        };
        // SAFETY: reads one structure.
        result(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })
    }),
];

/// What only the system call filter refuses.
const FILTERED: &[(&str, Attempt)] = &[
    ("fork_otherwise_than_a_machine", |_| {
        // SAFETY: the child, if there is one, ends at once.
        match unsafe { libc::fork() } {
            // SAFETY: ends the child without running anything of its parent's.
            0 => unsafe { libc::_exit(0) },
            pid => result(pid),
        }
    }),
    ("make_namespaces", |_| {
        // SAFETY: this process has one thread.
        result(unsafe { libc::unshare(libc::CLONE_NEWUSER) })
    }),
    ("map_memory_that_can_be_executed", |_| {
        let prot = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, which nobody uses.
        result(unsafe { libc::mmap(std::ptr::null_mut(), 4096, prot, flags, -1, 0) } as i64)
    }),
    ("type_into_a_terminal", |_| {
        // SAFETY: reads one byte.
        result(unsafe { libc::ioctl(0, libc::TIOCSTI, c"x".as_ptr()) })
    }),
    ("make_a_socket", |_| UnixStream::pair().map(drop)),
    ("use_io_uring", |_| {
        // SAFETY: a null parameter block, which is refused.
        result(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, std::ptr::null::<u8>()) })
    }),
    ("end_another_process", |outside| {
        // SAFETY: takes numbers.
        result(unsafe { libc::syscall(libc::SYS_tgkill, outside.parent, outside.parent, libc::SIGKILL) })
    }),
];

/// What it must still be able to do.
fn live() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let much: Vec<u8> = vec![7; 64 << 20];
        std::thread::sleep(Duration::from_millis(5));
        sender
            .send(much.iter().map(|byte| u64::from(*byte)).sum::<u64>())
            .unwrap();
    });
    assert_eq!(receiver.recv().unwrap(), 7 << 26);
    thread.join().unwrap();
    // The heap of a thread of each kind grows and shrinks: the C library looks into /proc then.
    for filter in [seccomp::io_thread, seccomp::vcpu_thread] {
        let thread = std::thread::spawn(move || {
            filter();
            // No piece is a mapping of its own.
            let pieces: Vec<Vec<u8>> = (0..500).map(|_| vec![7; 64 << 10]).collect();
            drop(std::hint::black_box(pieces));
        });
        thread.join().unwrap();
    }
    assert!(std::panic::catch_unwind(|| panic!("as it may")).is_err());
}

fn user() -> Option<User> {
    rustix::process::geteuid().is_root().then_some(User::DEFAULT)
}

/// Where a filter has to refuse: the thread that a VM process begins with, and what the others put on top of that.
const THREADS: &[(&str, fn())] = &[
    ("control", || {}),
    ("io", seccomp::io_thread),
    ("vcpu", seccomp::vcpu_thread),
];

/// In the process that tries: `attempt how port socket abstract-name`. `how` is `isolated`, without filters, or one of
/// [`THREADS`].
fn attempt(arguments: &[String]) {
    let [name, how, port, socket, abstract_name] = arguments else {
        panic!("{arguments:?}");
    };
    let socket = PathBuf::from(socket);
    let outside = Outside {
        port: port.parse().unwrap(),
        directory: std::fs::File::open(socket.parent().unwrap()).unwrap().into(),
        socket,
        abstract_name: abstract_name.clone(),
        parent: i32::try_from(std::os::unix::process::parent_id()).unwrap(),
    };
    let confinement = match how.as_str() {
        "isolated" => confine::isolate(user()),
        _ => confine::apply(user()),
    };
    println!("{}", serde_json::to_string(&confinement).unwrap());
    if name == "live" {
        return live();
    }
    let mut attempts = ATTEMPTS.iter().chain(FILTERED);
    let (_, attempt) = attempts.find(|(known, _)| known == name).unwrap();
    let result = match THREADS.iter().find(|(thread, _)| thread == how) {
        None | Some(("control", _)) => attempt(&outside),
        Some((_, filter)) => {
            let thread = std::thread::spawn(move || {
                filter();
                attempt(&outside)
            });
            thread.join().unwrap()
        }
    };
    match result {
        Ok(()) => println!("DONE"),
        Err(error) => println!("refused: {error:?}"),
    }
}

/// The outside world, and a process in its box that tries to get there.
fn tries(name: &str, how: &str) -> (confine::Confinement, String, Output) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "secret").unwrap();
    let socket = dir.path().join("socket");
    let _socket = UnixListener::bind(&socket).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap();
    let abstract_name = format!("spore-confined-{}-{name}-{how}", std::process::id());
    let _abstract =
        UnixListener::bind_addr(&SocketAddr::from_abstract_name(&abstract_name).unwrap()).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .env("SPORE_CONFINED", "1")
        // As in the product, whose processes do not have it: what it wants is not there.
        .env_remove("RUST_BACKTRACE")
        .args([name, how, &port.local_addr().unwrap().port().to_string()])
        .arg(&socket)
        .arg(&abstract_name)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout.clone()).unwrap();
    let (confinement, rest) = said.split_once('\n').unwrap_or_else(|| panic!("{output:?}"));
    let confinement = serde_json::from_str(confinement).unwrap();
    (confinement, rest.trim().to_owned(), output)
}

fn refused_by_the_box(name: &str) {
    let (confinement, said, output) = tries(name, "isolated");
    if !confinement.root.is_yes() || !confinement.landlock.is_yes() {
        eprintln!("SKIPPED: this host has no box: {confinement:?}");
        return;
    }
    assert!(said.starts_with("refused: "), "{name}: {said:?}, {output:?}");
    // Refused, and not because it was tried wrongly.
    for wrong in [libc::EINVAL, libc::EFAULT, libc::EBADF] {
        assert!(!said.contains(&format!("code: {wrong},")), "{name}: {said}");
    }
}

/// The end of the process, or, of what is only not there, an error.
fn refused_by_the_filter(name: &str, thread: &str) {
    let (confinement, said, output) = tries(name, thread);
    assert!(confinement.seccomp.is_yes(), "{confinement:?}");
    let killed = output.status.signal() == Some(libc::SIGSYS) && said.is_empty();
    let not_there = said.contains(&format!("code: {},", libc::ENOSYS));
    assert!(killed || not_there, "{name}: {said:?}, {output:?}");
}

fn a_confined_process_says_how_and_can_do_what_it_must() {
    let (confinement, _, output) = tries("live", "control");
    assert!(output.status.success(), "{output:?}");
    for (part, applied) in confinement.parts() {
        eprintln!("{part}: {applied:?}");
    }
    assert!(confinement.seccomp.is_yes() && confinement.limits.is_yes() && confinement.capabilities.is_yes());
    if user().is_some() {
        assert!(confinement.user.is_yes(), "{confinement:?}");
    }
    let (without, _, output) = tries("live", "isolated");
    assert!(output.status.success() && !without.seccomp.is_yes(), "{output:?}");
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if std::env::var_os("SPORE_CONFINED").is_some() {
        attempt(&arguments);
        return ExitCode::SUCCESS;
    }
    let mut trials = vec![Trial::test(
        "a_confined_process_says_how_and_can_do_what_it_must",
        || {
            a_confined_process_says_how_and_can_do_what_it_must();
            Ok(())
        },
    )];
    for (name, _) in ATTEMPTS {
        trials.push(Trial::test(format!("the_box_does_not_let_it::{name}"), || {
            refused_by_the_box(name);
            Ok(())
        }));
    }
    for (thread, _) in THREADS {
        for (name, _) in ATTEMPTS.iter().chain(FILTERED) {
            let test = format!("the_filter_of_{thread}_threads_does_not_let_it::{name}");
            trials.push(Trial::test(test, || {
                refused_by_the_filter(name, thread);
                Ok(())
            }));
        }
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
