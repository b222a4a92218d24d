//! The program `witness`, which lives through a checkpoint and says what it saw: see `guest/witness.rs`.

use crate::sandbox::Sandbox;

const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/witness"));
const PATH: &str = "/run/witness";
const FIFO: &str = "/run/witness-fifo";

/// What it says.
#[derive(Debug, Clone)]
pub struct Testimony {
    /// How often it looked at the clocks.
    pub looks: u64,
    /// By how much a clock that never goes back went back, in nanoseconds.
    pub back_ns: i64,
    /// Thirty-two bytes of `getrandom`, in hexadecimal.
    pub getrandom: String,
    /// The same of `/dev/urandom`.
    pub urandom: String,
    /// The machine id, in a mapping made when it was started.
    pub machine_id: String,
    /// The boot id, through a descriptor opened when it was started.
    pub boot_id: String,
}

/// Starts it in a guest, in a session and a mount namespace of its own.
pub fn start(sandbox: &mut Sandbox) {
    sandbox.put_program(PATH, PROGRAM);
    sandbox.sh(&format!(
        "mkfifo {FIFO} && unshare -m setsid {PATH} {FIFO} >/dev/null 2>&1 &"
    ));
    // It has begun when it answers.
    ask(sandbox);
}

/// What it says now.
pub fn ask(sandbox: &mut Sandbox) -> Testimony {
    let line = sandbox.sh(&format!(
        "while [ ! -p {FIFO} ]; do sleep 0.1; done; read -r line <{FIFO} && echo $line"
    ));
    let fields: Vec<&str> = line.split(' ').collect();
    let [looks, back_ns, getrandom, urandom, machine_id, boot_id] = fields[..] else {
        panic!("{line:?}");
    };
    Testimony {
        looks: looks.parse().unwrap(),
        back_ns: back_ns.parse().unwrap(),
        getrandom: getrandom.to_owned(),
        urandom: urandom.to_owned(),
        machine_id: machine_id.to_owned(),
        boot_id: boot_id.to_owned(),
    }
}
