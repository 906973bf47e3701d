//! The machine itself: its boot, system, names, addresses, and who made it.

use std::{fs, io, net::IpAddr, path::Path};

/// Addresses that are told to the broker. A host has a handful; a container host may have many.
const MAX_ADDRESSES: usize = 16;
/// Longest text read from one of the kernel's or distribution's small files.
const MAX_FILE_BYTES: usize = 64 << 10;

/// What distinguishes this boot from the one before, opaque.
///
/// # Errors
/// If the kernel does not tell.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// Name of the operating system, for people.
#[must_use]
pub fn os_name() -> String {
    for path in ["/etc/os-release", "/usr/lib/os-release"] {
        if let Some(name) = read_small(Path::new(path)).as_deref().and_then(pretty_name) {
            return name;
        }
    }
    "Linux".to_owned()
}

fn pretty_name(os_release: &str) -> Option<String> {
    let line = os_release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(line.trim_matches(['"', '\'']).to_owned())
}

/// Name that the machine gives itself, lower-cased.
#[must_use]
pub fn hostname() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .to_lowercase()
}

/// Addresses at which others may reach the machine: neither loopback nor link-local.
#[must_use]
pub fn addresses() -> Vec<String> {
    let mut found = Vec::new();
    if let Some(trie) = read_small(Path::new("/proc/net/fib_trie")) {
        found.extend(ipv4_addresses(&trie));
    }
    if let Some(table) = read_small(Path::new("/proc/net/if_inet6")) {
        found.extend(ipv6_addresses(&table));
    }
    found.truncate(MAX_ADDRESSES);
    found.iter().map(IpAddr::to_string).collect()
}

/// The kernel's routing trie names each own address as a leaf `|-- ADDRESS` that is followed by
/// `/32 host LOCAL`; it stands there once per table.
fn ipv4_addresses(trie: &str) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = Vec::new();
    let mut leaf = None;
    for line in trie.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.parse().ok();
        } else if line == "/32 host LOCAL"
            && let Some(address @ IpAddr::V4(v4)) = leaf
            && !(v4.is_loopback() || v4.is_link_local() || found.contains(&address))
        {
            found.push(address);
        }
    }
    found
}

/// Each line: address as 32 hex digits, interface index, prefix length, scope, flags, name.
fn ipv6_addresses(table: &str) -> Vec<IpAddr> {
    const SCOPE_GLOBAL: &str = "00";
    // IFA_F_TEMPORARY, IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_TENTATIVE of linux/if_addr.h: an
    // address that is gone tomorrow, or not in use, is none to be reached at.
    const PASSING: u8 = 0x01 | 0x08 | 0x20 | 0x40;
    table
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let address = u128::from_str_radix(fields.next()?, 16).ok()?;
            let scope = fields.nth(2)?;
            let flags = u8::from_str_radix(fields.next()?, 16).ok()?;
            (scope == SCOPE_GLOBAL && flags & PASSING == 0)
                .then(|| IpAddr::from(address.to_be_bytes()))
        })
        .collect()
}

/// What the firmware says of its maker; each field empty where it says nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Firmware {
    /// Who made the machine.
    pub sys_vendor: String,
    /// What it is called.
    pub product_name: String,
    /// Who made its firmware.
    pub bios_vendor: String,
    /// The tag on its chassis; clouds put a mark there.
    pub chassis_asset_tag: String,
}

/// What the firmware says, from `root`, which is `/` outside of tests.
#[must_use]
pub fn firmware(root: &Path) -> Firmware {
    let folder = root.join("sys/class/dmi/id");
    let field = |name: &str| {
        read_small(&folder.join(name))
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    Firmware {
        sys_vendor: field("sys_vendor"),
        product_name: field("product_name"),
        bios_vendor: field("bios_vendor"),
        chassis_asset_tag: field("chassis_asset_tag"),
    }
}

/// A small text file; None if it is not there, not readable or too long to be what it should be.
pub(super) fn read_small(path: &Path) -> Option<String> {
    use std::io::Read as _;
    let mut text = String::new();
    let limit = u64::try_from(MAX_FILE_BYTES).unwrap_or(u64::MAX);
    fs::File::open(path)
        .ok()?
        .take(limit)
        .read_to_string(&mut text)
        .ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_tells_its_boot_and_name() {
        assert_eq!(boot_id().unwrap(), boot_id().unwrap());
        assert!(!boot_id().unwrap().is_empty());
        assert!(!hostname().is_empty());
        assert!(!os_name().is_empty());
    }

    #[test]
    fn the_pretty_name_is_read_without_its_quotes() {
        let text = "NAME=\"Debian\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n";
        assert_eq!(pretty_name(text).unwrap(), "Debian GNU/Linux 12 (bookworm)");
        assert_eq!(pretty_name("ID=x\n"), None);
    }

    #[test]
    fn own_addresses_are_told_once_without_loopback_and_without_passing_ones() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     \
                    |-- 192.0.2.7\n        /32 host LOCAL\nLocal:\n     |-- 127.0.0.1\n        /32 host LOCAL\n     \
                    |-- 192.0.2.7\n        /32 host LOCAL\n     |-- 192.0.2.255\n        /32 link BROADCAST\n";
        assert_eq!(
            ipv4_addresses(trie),
            ["192.0.2.7".parse::<IpAddr>().unwrap()]
        );
        let table = "00000000000000000000000000000001 01 80 10 80       lo\n\
                     20010db8000000000000000000000007 02 40 00 80     eth0\n\
                     20010db8000000003c1fa2b4d5e6f701 02 40 00 01     eth0\n\
                     20010db80000000000000000000000ad 02 40 00 a0     eth0\n\
                     fe80000000000000000000000000beef 02 40 20 80     eth0\n";
        assert_eq!(
            ipv6_addresses(table),
            ["2001:db8::7".parse::<IpAddr>().unwrap()]
        );
    }
}
