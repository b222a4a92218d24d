//! A small world of network namespaces, which end with the test that made them.
//!
//! ```text
//! guest ── TAP ═ host ── up0 ~ in0 ── internet   203.0.113.0/24, DNS at .53, and 169.254.169.254
//!                  └──── lan0 ~ eth0 ─ lan       10.77.0.2
//! ```
//! A test's thread is in the host's namespace; a guest is a kernel of its own behind its TAP.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::thread::{CapabilitySet, LinkNameSpaceType, UnshareFlags};
use spore_network::{Attachment, Config, HEADER_BYTES, Network, Policy};

pub const TABLE: &str = "spore-test";
pub const UPLINK: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
pub const LAN_HOST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub const LAN: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
pub const ONE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub const TWO: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
pub const DNS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 53);
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
pub const MTU: u16 = 1400;
/// How long something that must not come is waited for.
const PATIENCE: Duration = Duration::from_millis(400);
const VICTIM: &str = "SPORE_NETWORK_VICTIM";

/// A network namespace.
pub struct Ns(File);

fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: only namespaces are left, never the table of file descriptors.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(io::Error::from)
}

impl Ns {
    fn new() -> Ns {
        let made = thread::spawn(|| {
            unshare(UnshareFlags::NEWNET).unwrap();
            Ns::here()
        });
        let ns = made.join().unwrap();
        ns.run(|| ip("link set lo up"));
        ns
    }

    /// The calling thread's.
    pub fn here() -> Ns {
        Ns(File::open("/proc/thread-self/ns/net").unwrap())
    }

    /// Runs `f` in this namespace.
    pub fn run<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        let inside = || {
            rustix::thread::move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))
                .unwrap();
            f()
        };
        thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// Runs a program in the thread's namespaces, and returns what it prints.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

pub fn ip(arguments: &str) -> String {
    run("ip", &arguments.split(' ').collect::<Vec<_>>())
}

pub fn nft(rules: &str) -> String {
    run("nft", &[rules])
}

/// Everything that the network changes on a host, as text.
pub fn traces(world: &World) -> String {
    let state = fs::read_dir(world.config().state_dir).map_or(vec![], |dir| {
        dir.map(|entry| entry.unwrap().file_name()).collect()
    });
    format!(
        "{}{}{}{}{state:?}",
        ip("-br link"),
        ip("-4 route show table all"),
        nft("list ruleset"),
        forwarding("up0")
    )
}

pub fn forwarding(interface: &str) -> String {
    fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{interface}/forwarding")).unwrap()
}

pub struct World {
    pub internet: Ns,
    pub lan: Ns,
    pub directory: tempfile::TempDir,
}

/// Runs a test in a world of its own, or says loudly that it can't.
pub fn in_world(test: impl FnOnce(&World) + Send) {
    let wanted = CapabilitySet::NET_ADMIN | CapabilitySet::SYS_ADMIN;
    let sets = rustix::thread::capabilities(None).unwrap();
    let lacks = match () {
        () if !sets.effective.contains(wanted) => "CAP_NET_ADMIN and CAP_SYS_ADMIN",
        () if !fs::exists("/dev/net/tun").unwrap() => "/dev/net/tun",
        () if Command::new("nft").arg("-v").output().is_err() => "the program nft",
        () if Command::new("ip").arg("-V").output().is_err() => "the program ip",
        () => "",
    };
    if !lacks.is_empty() {
        // Not captured, unlike what the test's own thread prints.
        let _ = writeln!(io::stderr(), "SKIPPED: a test of the network needs {lacks}");
        return;
    }
    let whole = || {
        unshare(UnshareFlags::NEWNET | UnshareFlags::NEWNS).unwrap();
        run("mount", &["--make-rprivate", "/"]);
        test(&World::new());
    };
    thread::scope(|scope| {
        if let Err(panic) = scope.spawn(whole).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

impl World {
    fn new() -> World {
        let world = World {
            internet: Ns::new(),
            lan: Ns::new(),
            directory: tempfile::tempdir().unwrap(),
        };
        fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        ip("link set lo up");
        for (near, address, far, ns) in [
            ("up0", "198.51.100.2/24", "in0", &world.internet),
            ("lan0", "10.77.0.1/24", "eth0", &world.lan),
        ] {
            ip(&format!(
                "link add {near} type veth peer name {far} netns {}",
                ns.path()
            ));
            ip(&format!("addr add {address} dev {near}"));
            ip(&format!("link set {near} mtu {MTU} up"));
        }
        ip("route add default via 198.51.100.1");
        world.internet.run(|| {
            ip(&format!("link set in0 mtu {MTU} up"));
            for address in [
                "198.51.100.1/24",
                "203.0.113.1/32",
                "203.0.113.2/32",
                "203.0.113.20/32",
                "203.0.113.53/32",
            ] {
                ip(&format!("addr add {address} dev in0"));
            }
            ip("addr add 169.254.169.254/32 dev in0");
            for port in [53, 80, 443] {
                serve_tcp(port);
            }
            serve_udp(SocketAddrV4::new(DNS, 53));
        });
        world.lan.run(|| {
            ip("addr add 10.77.0.2/24 dev eth0");
            ip("link set eth0 up");
            ip("route add default via 10.77.0.1");
            serve_tcp(80);
        });
        serve_tcp(80);
        serve_udp(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 53));
        // A veth's carrier comes a moment after its peer is up.
        while ip("-br link").contains("LOWERLAYERDOWN") {
            thread::sleep(Duration::from_millis(1));
        }
        let resolv = world.directory.path().join("resolv.conf");
        fs::write(resolv, format!("nameserver 127.0.0.53\nnameserver {DNS}\n")).unwrap();
        world
    }

    pub fn config(&self) -> Config {
        Config {
            table: TABLE.into(),
            state_dir: self.directory.path().join("state"),
            resolv_conf: vec![self.directory.path().join("resolv.conf")],
            ..Config::default()
        }
    }

    pub fn open(&self) -> Network {
        Network::open(self.config()).unwrap()
    }

    /// Another process that attaches once, and does what `order` says.
    pub fn victim(&self, order: &str, path: Option<&str>) -> Victim {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "harness::victim", "--nocapture", "--test-threads=1"])
            .env(VICTIM, format!("{order} {}", self.directory.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if let Some(path) = path {
            command.env("PATH", path);
        }
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let said = lines.find_map(|line| Some(line.unwrap().split_once("VICTIM ")?.1.to_owned()));
        Victim {
            child,
            said: said.unwrap(),
            _lines: Box::new(lines),
        }
    }
}

pub struct Victim {
    child: Child,
    pub said: String,
    /// The other end of what it prints, without which it would fail.
    _lines: Box<dyn Iterator<Item = io::Result<String>>>,
}

impl Victim {
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// For a child of its own that reads the same standard input.
    pub fn kill_but_keep_input(mut self) -> ChildStdin {
        let input = self.child.stdin.take().unwrap();
        self.kill();
        input
    }

    pub fn end(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

/// The other process: no test, unless it is told to be one.
#[test]
fn victim() {
    let Ok(order) = std::env::var(VICTIM) else {
        return;
    };
    let (order, directory) = order.split_once(' ').unwrap();
    let directory = PathBuf::from(directory);
    let config = Config {
        table: TABLE.into(),
        state_dir: directory.join("state"),
        resolv_conf: vec![directory.join("resolv.conf")],
        ..Config::default()
    };
    let attached = Network::open(config).and_then(|network| {
        let attachment = network.attach(&Policy::Nat)?;
        Ok((network, attachment))
    });
    let (_network, attachment) = match attached {
        Ok(both) => both,
        Err(error) => return println!("VICTIM {error:?} {error}"),
    };
    if order == "heir" {
        // A VM's process, which has both descriptors: it lives until its standard input ends.
        let (tap, lease) = (attachment.tap().unwrap(), attachment.lease().unwrap());
        for fd in [tap, lease] {
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).unwrap();
        }
        #[allow(
            clippy::zombie_processes,
            reason = "it outlives this process, which is killed"
        )]
        let heir = Command::new("cat").stdout(Stdio::null()).spawn().unwrap();
        println!("VICTIM {} {}", attachment.interface().tap, heir.id());
    } else {
        println!("VICTIM {}", attachment.interface().tap);
    }
    let _ = io::stdin().read_to_end(&mut Vec::new());
}

/// Tells everybody who connects what address they come from.
pub fn serve_tcp(port: u16) {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let peer = stream.peer_addr().unwrap().ip();
            thread::spawn(move || {
                let _ = writeln!(&stream, "{peer}");
                let _ = (&stream).read_to_end(&mut Vec::new());
            });
        }
    });
}

fn serve_udp(address: SocketAddrV4) {
    let socket = UdpSocket::bind(address).unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((count, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..count], from);
        }
    });
}

/// A socket that only listens.
pub fn ear(address: Ipv4Addr, port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((address, port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// What an ear hears before it loses patience.
pub fn heard(ear: &UdpSocket) -> Vec<String> {
    let mut all = Vec::new();
    let mut buffer = [0; 1500];
    while let Ok((count, _)) = ear.recv_from(&mut buffer) {
        all.push(String::from_utf8_lossy(&buffer[..count]).into_owned());
    }
    all
}

/// What a server says on TCP.
pub fn tcp(to: Ipv4Addr, port: u16) -> io::Result<String> {
    let stream = TcpStream::connect_timeout(&SocketAddrV4::new(to, port).into(), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

/// Whether a server echoes on UDP.
pub fn udp(to: Ipv4Addr, port: u16) -> io::Result<()> {
    let socket = ear(Ipv4Addr::UNSPECIFIED, 0);
    socket.send_to(b"echo", (to, port))?;
    socket.recv_from(&mut [0; 16]).map(drop)
}

/// A kernel behind a TAP: its own TAP's frames are carried over to the host's and back, headers and all, so that
/// segmentation is left to the other side as it would be with a virtio-net device.
pub struct Guest {
    pub ns: Ns,
    pump: Option<JoinHandle<()>>,
    stop: OwnedFd,
}

impl Guest {
    pub fn new(attachment: &Attachment) -> Guest {
        let ns = Ns::new();
        let own = ns.run(|| make_tap("eth0"));
        let interface = attachment.interface().clone();
        ns.run(|| {
            let [a, b, c, d, e, f] = interface.mac;
            ip(&format!(
                "link set eth0 address {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"
            ));
            ip(&format!(
                "addr add {}/{} dev eth0",
                interface.address, interface.prefix_length
            ));
            ip(&format!("link set eth0 mtu {} up", interface.mtu));
            ip(&format!("route add default via {}", interface.gateway));
        });
        let host = attachment.tap().unwrap().try_clone_to_owned().unwrap();
        let (stop, stopped) = {
            let (read, write) = rustix::pipe::pipe().unwrap();
            (write, read)
        };
        let pump = Some(thread::spawn(move || pump(&host, &own, &stopped)));
        Guest { ns, pump, stop }
    }

    pub fn tcp(&self, to: Ipv4Addr, port: u16) -> io::Result<String> {
        self.ns.run(|| tcp(to, port))
    }

    pub fn udp(&self, to: Ipv4Addr, port: u16) -> io::Result<()> {
        self.ns.run(|| udp(to, port))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.stop, &[0]);
        if let Some(pump) = self.pump.take() {
            let _ = pump.join();
        }
    }
}

fn pump(host: &OwnedFd, guest: &OwnedFd, stop: &OwnedFd) {
    let mut frame = vec![0; 65536 + HEADER_BYTES];
    loop {
        let mut fds = [host, guest, stop].map(|fd| PollFd::new(fd, PollFlags::IN));
        rustix::event::poll(&mut fds, None).unwrap();
        if !fds[2].revents().is_empty() || fds[0].revents().contains(PollFlags::ERR) {
            return;
        }
        for (from, to) in [(host, guest), (guest, host)] {
            while let Ok(count) = rustix::io::read(from, frame.as_mut_slice()) {
                let _ = rustix::io::write(to, &frame[..count]);
            }
        }
    }
}

/// A TAP as a guest's interface; the same that the crate makes, without its rules.
fn make_tap(name: &str) -> OwnedFd {
    use std::os::unix::fs::OpenOptionsExt;
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .unwrap();
    // SAFETY: ifreq is plain bytes, for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).unwrap();
    let size = i32::try_from(HEADER_BYTES).unwrap();
    let offloads = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    // SAFETY: each request reads or writes what it is given, which outlives the call.
    let results = unsafe {
        [
            libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request),
            libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size),
            libc::ioctl(
                file.as_raw_fd(),
                libc::TUNSETOFFLOAD,
                libc::c_ulong::from(offloads),
            ),
        ]
    };
    assert_eq!(results, [0; 3]);
    file.into()
}
