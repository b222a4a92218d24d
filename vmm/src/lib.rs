//! One VM: guest memory, vCPUs, boot, ACPI, buses, save and restore, and the VM process.
//!
//! The floors inside: [`layout`], [`ram`], [`kvm`] at the bottom; [`memslots`], [`hotplug`],
//! [`vcpu`], [`boot`], [`acpi`], [`irq`] on them; [`device_set`], [`bus`], [`io`] above; [`machine`]
//! puts one together and pauses, saves and restores it. [`process`] is the VM process, [`guest`] a VM with its disks
//! and its agent, and [`pool`] keeps forks of them ready.

pub mod acpi;
pub mod boot;
pub mod bus;
pub mod cancel;
pub mod clock;
pub mod confine;
pub mod console;
pub mod device_set;
pub mod disk;
pub mod exit;
pub mod fork_port;
pub mod guest;
pub mod hotplug;
pub mod io;
pub mod irq;
pub mod kvm;
pub mod layout;
pub mod machine;
pub mod memslots;
pub mod net;
pub mod pagemap;
pub mod pool;
pub mod process;
pub mod ram;
pub mod random;
pub mod reclaim;
pub mod socket;
pub mod together;
pub mod vcpu;
pub mod wake_set;
