//! Traces that joining a domain leaves on a machine: the keytab, sssd's and Samba's settings.

use std::{collections::BTreeSet, fs, io, path::Path};

use super::machine::read_small;

/// A keytab holds a few keys per principal; a larger file is none.
const MAX_KEYTAB_BYTES: u64 = 1 << 20;
/// Principals that are kept: a machine has `HOST$` and a few of `host/...`.
const MAX_PRINCIPALS: usize = 16;

/// What the machine's own keys say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Keytab {
    /// There is none.
    Missing,
    /// It is there and may not be read.
    Unreadable,
    /// It is not a keytab.
    Damaged,
    /// Realms of the machine's own principals (`HOST$` or `host/...`), as they are spelt.
    Realms(BTreeSet<String>),
}

/// A principal of the machine, and the newest of its keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MachineKey {
    /// `VDI-01$` or `host/vdi-01.example.org`.
    pub name: String,
    /// Its realm.
    pub realm: String,
    /// Number of its newest key.
    pub newest: u32,
}

/// Traces of a domain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DomainTraces {
    /// The machine's keys.
    pub keytab: Keytab,
    /// Its principals.
    pub principals: Vec<MachineKey>,
    /// Domains that sssd is set up for.
    pub sssd: BTreeSet<String>,
    /// sssd's settings are there and may not be read.
    pub sssd_unreadable: bool,
    /// Realm that Samba's winbind is set up for.
    pub winbind: Option<String>,
}

impl DomainTraces {
    /// Nothing on this machine speaks of a domain.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keytab == Keytab::Missing
            && self.sssd.is_empty()
            && !self.sssd_unreadable
            && self.winbind.is_none()
    }
}

/// Looks below `root`, which is `/` outside of tests. Blocks for a few small files.
#[must_use]
pub fn traces(root: &Path) -> DomainTraces {
    let (sssd, sssd_unreadable) = match read(&root.join("etc/sssd/sssd.conf")) {
        Ok(text) => (sssd_domains(&text), false),
        Err(error) => (
            BTreeSet::new(),
            error.kind() == io::ErrorKind::PermissionDenied,
        ),
    };
    let (keytab, principals) = keytab(&root.join("etc/krb5.keytab"));
    DomainTraces {
        keytab,
        principals,
        sssd,
        sssd_unreadable,
        winbind: read_small(&root.join("etc/samba/smb.conf"))
            .as_deref()
            .and_then(winbind_realm),
    }
}

fn read(path: &Path) -> io::Result<String> {
    // What is not readable is told apart from what is not there.
    fs::File::open(path)?;
    Ok(read_small(path).unwrap_or_default())
}

fn keytab(path: &Path) -> (Keytab, Vec<MachineKey>) {
    use io::Read as _;
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return (Keytab::Missing, Vec::new());
        }
        Err(_) => return (Keytab::Unreadable, Vec::new()),
    };
    let mut bytes = Vec::new();
    if file.take(MAX_KEYTAB_BYTES).read_to_end(&mut bytes).is_err() {
        return (Keytab::Unreadable, Vec::new());
    }
    match machine_keys(&bytes) {
        Some(keys) => {
            let realms = keys.iter().map(|key| key.realm.clone()).collect();
            (Keytab::Realms(realms), keys)
        }
        None => (Keytab::Damaged, Vec::new()),
    }
}

/// The machine's principals in an MIT keytab of version 2: after the two bytes 05 02, entries of a
/// length (negative for a hole), a count of components, the realm, the components, name type, time,
/// key number in a byte, key type, key, and the key number in four bytes where one byte is too few.
fn machine_keys(bytes: &[u8]) -> Option<Vec<MachineKey>> {
    let mut rest = bytes.strip_prefix(&[5, 2])?;
    let mut keys: Vec<MachineKey> = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = i32::from_be_bytes(*length);
        let size = usize::try_from(length.unsigned_abs()).ok()?;
        if length == 0 || size > after.len() {
            break;
        }
        let (entry, next) = after.split_at(size);
        rest = next;
        if length < 0 {
            continue;
        }
        let key = key(entry)?;
        let first = key.name.split('/').next().unwrap_or_default();
        if !(first.ends_with('$') || first.eq_ignore_ascii_case("host")) {
            continue;
        }
        let same = |known: &MachineKey| known.name == key.name && known.realm == key.realm;
        if let Some(at) = keys.iter().position(same) {
            keys[at].newest = keys[at].newest.max(key.newest);
        } else if keys.len() < MAX_PRINCIPALS {
            keys.push(key);
        }
    }
    Some(keys)
}

fn key(entry: &[u8]) -> Option<MachineKey> {
    let (count, mut entry) = entry.split_first_chunk::<2>()?;
    let realm = counted(&mut entry)?;
    let components: Option<Vec<_>> = (0..u16::from_be_bytes(*count))
        .map(|_| counted(&mut entry))
        .collect();
    // Name type and time.
    let (_, after) = entry.split_at_checked(8)?;
    let (&short, after) = after.split_first()?;
    let (_, mut after) = after.split_at_checked(2)?;
    counted(&mut after)?;
    let long = after
        .first_chunk::<4>()
        .map(|bytes| u32::from_be_bytes(*bytes));
    Some(MachineKey {
        name: components?.join("/"),
        realm,
        newest: long
            .filter(|long| *long != 0)
            .unwrap_or_else(|| short.into()),
    })
}

fn counted(bytes: &mut &[u8]) -> Option<String> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    let (text, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
    *bytes = rest;
    Some(String::from_utf8_lossy(text).into_owned())
}

/// Domains in the sections `[domain/NAME]`, by their `ad_domain`, `ipa_domain` or `krb5_realm`
/// where one is set.
fn sssd_domains(text: &str) -> BTreeSet<String> {
    let mut domains = BTreeSet::new();
    let mut section: Option<(String, bool)> = None;
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            domains.extend(section.take().map(|(name, _)| name));
            section = line
                .strip_prefix("[domain/")
                .and_then(|rest| rest.strip_suffix(']'))
                .map(|name| (name.to_owned(), false));
        } else if let (Some((name, better)), Some((key, value))) =
            (&mut section, line.split_once('='))
            && !*better
            && matches!(key.trim(), "ad_domain" | "ipa_domain" | "krb5_realm")
        {
            value.trim().clone_into(name);
            *better = true;
        }
    }
    domains.extend(section.map(|(name, _)| name));
    domains
}

fn winbind_realm(smb_conf: &str) -> Option<String> {
    let setting = |wanted: &str| {
        smb_conf.lines().find_map(|line| {
            let (key, value) = line.split_once('=')?;
            (key.trim().eq_ignore_ascii_case(wanted)).then(|| value.trim().to_owned())
        })
    };
    let member = setting("security").is_some_and(|kind| kind.eq_ignore_ascii_case("ads"));
    if member { setting("realm") } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One keytab entry for `components@realm`, as `ktutil` writes it.
    fn entry(realm: &str, components: &[&str], kvno: u8) -> Vec<u8> {
        let text = |text: &str| {
            let mut bytes = u16::try_from(text.len()).unwrap().to_be_bytes().to_vec();
            bytes.extend(text.as_bytes());
            bytes
        };
        let mut body = u16::try_from(components.len())
            .unwrap()
            .to_be_bytes()
            .to_vec();
        body.extend(text(realm));
        for component in components {
            body.extend(text(component));
        }
        body.extend([0, 0, 0, 1, 0, 0, 0, 0, kvno, 0, 18, 0, 2, 0xaa, 0xbb]);
        let mut whole = i32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
        whole.extend(body);
        whole
    }

    fn keytab_of(entries: &[Vec<u8>]) -> Vec<u8> {
        [vec![5, 2], entries.concat()].concat()
    }

    #[test]
    fn principals_of_the_machine_are_read_from_its_keytab() {
        let hole = [(-4_i32).to_be_bytes().to_vec(), vec![0; 4]].concat();
        let bytes = keytab_of(&[
            entry("EXAMPLE.ORG", &["host", "vdi-01.example.org"], 3),
            hole,
            entry("EXAMPLE.ORG", &["VDI-01$"], 3),
            entry("EXAMPLE.ORG", &["VDI-01$"], 4),
            entry("OTHER.ORG", &["HTTP", "www.other.org"], 3),
        ]);
        let keys = machine_keys(&bytes).unwrap();
        let shown: Vec<_> = keys
            .iter()
            .map(|key| (&*key.name, &*key.realm, key.newest))
            .collect();
        assert_eq!(
            shown,
            [
                ("host/vdi-01.example.org", "EXAMPLE.ORG", 3),
                ("VDI-01$", "EXAMPLE.ORG", 4)
            ]
        );
    }

    #[test]
    fn damaged_keytabs_never_panic() {
        let whole = keytab_of(&[entry("EXAMPLE.ORG", &["VDI-01$"], 3)]);
        for cut in 0..whole.len() {
            let _ = machine_keys(&whole[..cut]);
        }
        assert_eq!(machine_keys(b"not a keytab"), None);
        assert_eq!(machine_keys(&[5, 2, 0, 0, 0, 3, 0xff, 0xff, 0xff]), None);
    }

    #[test]
    fn settings_of_sssd_and_winbind_name_their_domains() {
        let sssd = "[sssd]\ndomains = a\n[domain/a]\nid_provider = ad\nad_domain = a.example.org\n\
                    krb5_realm = A.EXAMPLE.ORG\n[domain/b.example.org]\nid_provider = ldap\n";
        let domains: Vec<_> = sssd_domains(sssd).into_iter().collect();
        assert_eq!(domains, ["a.example.org", "b.example.org"]);
        let samba = "[global]\n  security = ADS\n  realm = EXAMPLE.ORG\n";
        assert_eq!(winbind_realm(samba).unwrap(), "EXAMPLE.ORG");
        assert_eq!(
            winbind_realm("[global]\n security = user\n realm = X\n"),
            None
        );
    }

    #[test]
    fn a_machine_without_any_trace_has_none() {
        let root = tempfile::tempdir().unwrap();
        assert!(traces(root.path()).is_empty());
        fs::create_dir_all(root.path().join("etc")).unwrap();
        let bytes = keytab_of(&[entry("EXAMPLE.ORG", &["VDI-01$"], 3)]);
        fs::write(root.path().join("etc/krb5.keytab"), bytes).unwrap();
        let found = traces(root.path());
        assert_eq!(
            found.keytab,
            Keytab::Realms(BTreeSet::from(["EXAMPLE.ORG".to_owned()]))
        );
        assert!(!found.is_empty());
    }
}
