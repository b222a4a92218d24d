//! One VM: guest memory, vCPUs, boot, ACPI, buses, save and restore, and the VM process.

pub mod acpi;
pub mod boot;
pub mod kvm;
pub mod layout;
pub mod ram;
pub mod vcpu;
