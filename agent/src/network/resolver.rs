//! `/etc/resolv.conf`, which says whom to ask for names (resolv.conf(5)).

use std::fs;
use std::io::{self, Write};
use std::net::Ipv4Addr;

use spore_protocol::network::MAX_DNS;

use crate::views::View;

/// Where it is.
pub const PLACE: &str = "/etc/resolv.conf";
/// Where it is made before it is put there.
const WORKSHOP: &str = "/etc/.resolv.conf.spore";

/// Bytes of the longest line.
const LINE: usize = "nameserver 255.255.255.255\n".len();
/// Bytes of every text: what is not used is empty lines, so that a [`View`] can show it.
const BYTES: usize = LINE * MAX_DNS;

/// The text for these name servers.
pub fn text(dns: &[Ipv4Addr]) -> [u8; BYTES] {
    let mut text = [b'\n'; BYTES];
    let mut rest = &mut text[..];
    for server in dns.iter().take(MAX_DNS) {
        // There is room for as many of the longest.
        let _ = writeln!(rest, "nameserver {server}");
    }
    text
}

/// Has programs ask these: through the view that is in the file's place, or, where there is none, by
/// another file there.
///
/// # Errors
/// When the file cannot be replaced.
pub fn set(view: Option<&View>, dns: &[Ipv4Addr]) -> io::Result<()> {
    let text = text(dns);
    match view {
        Some(view) => view.show(&text),
        None if fs::read(PLACE).is_ok_and(|there| there == text) => Ok(()),
        None => {
            let at = |what: &str, error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
            fs::write(WORKSHOP, text).map_err(|error| at(WORKSHOP, error))?;
            fs::rename(WORKSHOP, PLACE).map_err(|error| at(PLACE, error))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_of_one_length_and_says_who_is_asked() {
        assert_eq!(text(&[]), [b'\n'; BYTES]);
        let one = text(&[Ipv4Addr::new(9, 9, 9, 9)]);
        assert_eq!(one.trim_ascii(), b"nameserver 9.9.9.9");
        let most = text(&[Ipv4Addr::new(255, 255, 255, 254); 5]);
        assert_eq!(most, "nameserver 255.255.255.254\n".repeat(3).as_bytes());
    }
}
