//! `domain` and `domain_reachable` against a real Samba domain controller in the same namespace.

use anyhow::Result;

use super::{Place, Seen};

/// A controller of `corp.example` at 203.0.113.9, provisioned anew, with its own DNS.
const CONTROLLER: &str = r#"
mount -t tmpfs tmpfs /var/lib/samba
mount -t tmpfs tmpfs /var/cache/samba
mount -t tmpfs tmpfs /etc/samba
mkdir -p /var/lib/samba/private /run/samba
ip addr add 203.0.113.9/24 dev lo
hostname dc1
samba-tool domain provision --realm=CORP.EXAMPLE --domain=CORP --server-role=dc \
    --dns-backend=SAMBA_INTERNAL --adminpass='Passw0rd.1' --host-name=dc1 \
    --host-ip=203.0.113.9 --option='interfaces=lo 203.0.113.9' \
    --option='bind interfaces only=yes' >"$HERE/provision.log" 2>&1 || { tail "$HERE/provision.log" >&2; exit 98; }
samba --foreground --no-process-group >"$HERE/samba.log" 2>&1 &

up 389; up 88; up 53
rm -f /etc/samba/smb.conf
hostname vdi-01
"#;

const JOIN: &str = r#"
echo -n 'Passw0rd.1' | adcli join --domain=corp.example --domain-controller=dc1.corp.example \
    --login-user=Administrator --stdin-password --host-fqdn=vdi-01.corp.example \
    --computer-name=VDI-01 --host-keytab=/run/krb5.keytab >"$HERE/join.log" 2>&1 \
    || { tail "$HERE/join.log" >&2; exit 97; }
touch /etc/krb5.keytab; mount --bind /run/krb5.keytab /etc/krb5.keytab
"#;

const EXPECTED: &str = "[check.domain]\nexpected = \"corp.example\"\n";

fn place() -> Result<Place> {
    let mut place = Place::new()?;
    place.over(
        "/etc/resolv.conf",
        "nameserver 203.0.113.9\nsearch corp.example\n",
    )?;
    place.over(
        "/etc/krb5.conf",
        "[libdefaults]\ndefault_realm = CORP.EXAMPLE\ndns_lookup_kdc = true\nrdns = false\n",
    )?;
    Ok(place)
}

async fn look(check: &str, script: &str) -> Result<Seen> {
    let script = format!("{CONTROLLER}{script}");
    place()?.doctor(check, EXPECTED, &script).await
}

#[tokio::test]
async fn a_machine_that_joined_a_real_domain_is_trusted() -> Result<()> {
    look("domain", JOIN).await?.expect(
        "pass",
        "DOMAIN_JOINED",
        &[
            "newest key of VDI-01$",
            "dc1.corp.example",
            "a controller gave VDI-01$ a ticket",
        ],
    )
}

#[tokio::test]
async fn a_machine_whose_account_was_reset_is_no_longer_trusted() -> Result<()> {
    let reset = format!(
        "{JOIN}\
         samba-tool user setpassword 'VDI-01$' --newpassword='Another.1x' -H /var/lib/samba/private/sam.ldb \
         >\"$HERE/reset.log\" 2>&1 || {{ tail \"$HERE/reset.log\" >&2; exit 96; }}\n"
    );
    look("domain", &reset)
        .await?
        .expect("fail", "DOMAIN_TRUST_BROKEN", &["realm join"])
}

#[tokio::test]
async fn a_machine_of_another_domain_or_with_another_s_keys_is_told() -> Result<()> {
    let other = "[check.domain]\nexpected = \"other.example\"\n";
    let script = format!("{CONTROLLER}{JOIN}");
    place()?.doctor("domain", other, &script).await?.expect(
        "fail",
        "DOMAIN_OTHER",
        &[
            "joined to CORP.EXAMPLE instead of other.example",
            "realm join other.example",
        ],
    )?;
    look("domain", &format!("{JOIN}hostname clone-07\n"))
        .await?
        .expect(
            "warn",
            "DOMAIN_OTHER_HOST",
            &["joined as VDI-01$, and the host is called clone-07"],
        )
}

/// The machine's clock is wrong, as the agent's process sees it, and the controller's is right.
#[tokio::test]
async fn a_clock_that_differs_from_the_controllers_is_told() -> Result<()> {
    let wrong = "export LD_PRELOAD=$(echo /usr/lib/*/faketime/libfaketime.so.1)\n\
                 export FAKETIME=-10m FAKETIME_DONT_FAKE_MONOTONIC=1\n";
    look("domain_reachable", wrong).await?.expect(
        "fail",
        "DOMAIN_CLOCK_SKEW",
        &["s behind dc1.corp.example", "timedatectl set-ntp true"],
    )?;
    look("domain", &format!("{JOIN}{wrong}")).await?.expect(
        "warn",
        "DOMAIN_CLOCK_SKEW",
        &["s behind dc1.corp.example"],
    )
}

#[tokio::test]
async fn a_machine_that_never_joined_is_told_how() -> Result<()> {
    Place::new()?.doctor("domain", EXPECTED, "").await?.expect(
        "fail",
        "DOMAIN_NOT_JOINED",
        &["realm join corp.example"],
    )
}

#[tokio::test]
async fn a_controller_that_is_down_only_warns_and_fails_its_own_check() -> Result<()> {
    look("domain_reachable", "")
        .await?
        .expect("pass", "", &["dc1.corp.example"])?;
    let blocked = format!(
        "{JOIN}nft add table inet t\n\
         nft add chain inet t in '{{ type filter hook input priority 0; }}'\n\
         nft add rule inet t in tcp dport 88 reject with tcp reset\n"
    );
    look("domain", &blocked).await?.expect(
        "warn",
        "DOMAIN_CONTROLLER_UNREACHABLE",
        &["Kerberos of the controller dc1"],
    )?;
    look("domain_reachable", &blocked).await?.expect(
        "fail",
        "DOMAIN_CONTROLLER_UNREACHABLE",
        &["203.0.113.9"],
    )
}

#[tokio::test]
async fn dns_that_does_not_know_the_domain_is_told() -> Result<()> {
    let dnsmasq = "ip addr add 203.0.113.9/24 dev lo\n\
                   dnsmasq --conf-file=/dev/null --no-resolv --no-hosts --user=root \
                   --local=/example/ --pid-file=/run/d.pid\nup 53\n";
    place()?
        .doctor("domain_reachable", EXPECTED, dnsmasq)
        .await?
        .expect(
            "fail",
            "DOMAIN_NO_RECORDS",
            &["dig SRV _ldap._tcp.corp.example"],
        )?;
    place()?
        .doctor("domain_reachable", EXPECTED, "")
        .await?
        .expect("fail", "DOMAIN_DNS", &["/etc/resolv.conf"])
}
