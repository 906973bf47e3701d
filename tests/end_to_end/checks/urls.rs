//! `urls`: every step on the way to a URL, broken on purpose.

use std::fmt::Write as _;

use anyhow::{Result, ensure};

use super::{Authority, Place, Seen, Until, nginx};

const ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

fn required(url: &str) -> String {
    format!("[check.urls]\ntimeout = \"6s\"\nrequired = [{{ url = {url:?}, role = \"token\" }}]\n")
}

/// A place whose name server is a real dnsmasq with these options.
fn dnsmasq(place: &mut Place, address: &str, options: &str) -> Result<String> {
    place.over("/etc/resolv.conf", &format!("nameserver {address}\n"))?;
    Ok(format!(
        "dnsmasq --conf-file=/dev/null --no-resolv --no-hosts --user=root --bind-interfaces \
         --listen-address={address} --pid-file=/run/dnsmasq.{address} {options}\nup 53\n"
    ))
}

/// The address of a service that is elsewhere, in a namespace that has only itself.
const ELSEWHERE: &str = "ip addr add 203.0.113.9/32 dev lo\n";

#[tokio::test]
async fn a_url_that_answers_passes_and_every_step_is_told() -> Result<()> {
    let mut place = Place::new()?;
    let names = dnsmasq(&mut place, "127.0.0.9", "--address=/web.example/127.0.0.1")?;
    let start = nginx(&place, "server { listen 80; return 204; }")?;
    let seen = place
        .doctor(
            "urls",
            &required("http://web.example/"),
            &format!("{names}{start}up 80"),
        )
        .await?;
    seen.expect(
        "pass",
        "REACHED",
        &["name: web.example is 127.0.0.1", "tcp: connected", "204"],
    )
}

#[tokio::test]
async fn an_entry_of_the_hosts_file_is_blamed_with_its_line() -> Result<()> {
    let mut place = Place::new()?;
    let hosts = "127.0.0.1 localhost\n\n# added in May\n127.0.0.1 token.example\n";
    place.over("/etc/hosts", hosts)?;
    place
        .doctor("urls", &required("https://token.example/"), "")
        .await?
        .expect(
            "fail",
            "HOSTS_FILE",
            &[
                "blocked by /etc/hosts line 4: 127.0.0.1 token.example",
                "sed -i '4d' /etc/hosts",
            ],
        )
}

#[tokio::test]
async fn name_servers_that_fail_are_told_apart_and_named() -> Result<()> {
    let silent = "ip addr add 192.0.2.53/32 dev lo\n\
                  nft add table inet t\n\
                  nft add chain inet t in '{ type filter hook input priority 0; }'\n\
                  nft add rule inet t in ip daddr 192.0.2.53 drop\n";
    let table = [
        (
            "127.0.0.9",
            "--address=/web.example/",
            "DNS_NXDOMAIN",
            "127.0.0.9 says",
        ),
        ("127.0.0.9", "", "DNS_FAILED", "127.0.0.9 fails"),
        (
            "127.0.0.9",
            "--local=/example/ --txt-record=web.example,here",
            "DNS_NO_ADDRESS",
            "no address",
        ),
    ];
    for (address, options, code, word) in table {
        let mut place = Place::new()?;
        let names = dnsmasq(&mut place, address, options)?;
        place
            .doctor("urls", &required("https://web.example/"), &names)
            .await?
            .expect("fail", code, &[word, "dig @127.0.0.9 web.example"])?;
    }
    let mut place = Place::new()?;
    place.over("/etc/resolv.conf", "nameserver 192.0.2.53\n")?;
    place
        .doctor("urls", &required("https://web.example/"), silent)
        .await?
        .expect(
            "fail",
            "DNS_TIMED_OUT",
            &["192.0.2.53 does not answer", "port 53"],
        )?;
    place.over("/etc/resolv.conf", "# none\n")?;
    place
        .doctor("urls", &required("https://web.example/"), "")
        .await?
        .expect("fail", "DNS_NO_SERVER", &["/etc/resolv.conf"])
}

#[tokio::test]
async fn name_servers_that_differ_are_both_named() -> Result<()> {
    let mut place = Place::new()?;
    let mut names = dnsmasq(&mut place, "127.0.0.8", "--address=/web.example/")?;
    let knows = dnsmasq(&mut place, "127.0.0.9", "--address=/web.example/127.0.0.1")?;
    names += &knows;
    place.over(
        "/etc/resolv.conf",
        "nameserver 127.0.0.8\nnameserver 127.0.0.9\n",
    )?;
    place
        .doctor("urls", &required("https://web.example/"), &names)
        .await?
        .expect(
            "fail",
            "DNS_SPLIT",
            &["127.0.0.9 knows it, 127.0.0.8 does not"],
        )
}

#[tokio::test]
async fn refused_dropped_and_unreachable_connections_are_told_apart() -> Result<()> {
    let drop = format!(
        "{ELSEWHERE}nft add table inet t\n\
         nft add chain inet t out '{{ type filter hook output priority 0; }}'\n\
         nft add rule inet t out ip daddr 203.0.113.9 tcp dport 443 drop\n"
    );
    let table = [
        (ELSEWHERE, "TCP_REFUSED", "refused"),
        (
            &drop,
            "TCP_TIMED_OUT",
            "outbound TCP 443 to 203.0.113.9 times out: a firewall drops it",
        ),
        ("", "TCP_UNREACHABLE", "ip route get 203.0.113.9"),
        (
            "ip route add prohibit 203.0.113.9\n",
            "TCP_FAILED",
            "Permission denied",
        ),
    ];
    for (script, code, word) in table {
        Place::new()?
            .doctor("urls", &required("https://203.0.113.9/"), script)
            .await?
            .expect("fail", code, &[word])?;
    }
    Ok(())
}

/// nginx shows this certificate for `web.example`, and the machine trusts `trusted`.
async fn shown(
    authority: &Authority,
    trusted: &Authority,
    host: &str,
    until: Until,
) -> Result<Seen> {
    let mut place = Place::new()?;
    place.over(ROOTS, trusted.pem())?;
    authority.issue(&place, "web", host, until)?;
    let here = place.path().display();
    let start = nginx(
        &place,
        &format!(
            "server {{ listen 443 ssl; ssl_certificate {here}/web.crt; \
             ssl_certificate_key {here}/web.key; return 200; }}"
        ),
    )?;
    let names = dnsmasq(&mut place, "127.0.0.9", "--address=/web.example/127.0.0.1")?;
    let script = format!("unset SSL_CERT_FILE SSL_CERT_DIR\n{names}{start}up 443");
    place
        .doctor("urls", &required("https://web.example/"), &script)
        .await
}

#[tokio::test]
async fn certificates_that_are_not_taken_are_described() -> Result<()> {
    let (site, proxy) = (
        Authority::new("Site Root")?,
        Authority::new("Corporate Inspection Proxy")?,
    );
    shown(&site, &site, "web.example", Until::Days(90))
        .await?
        .expect("pass", "REACHED", &["200 OK"])?;
    shown(&proxy, &site, "web.example", Until::Days(90))
        .await?
        .expect(
            "fail",
            "TLS_UNKNOWN_CA",
            &["Corporate Inspection Proxy", "update-ca-certificates"],
        )?;
    shown(&site, &site, "web.example", Until::Past)
        .await?
        .expect("fail", "TLS_EXPIRED", &["valid until 2021-01-01"])?;
    shown(&site, &site, "other.example", Until::Days(90))
        .await?
        .expect(
            "fail",
            "TLS_WRONG_NAME",
            &["is for other.example, not for web.example"],
        )
}

#[tokio::test]
async fn a_machine_without_roots_and_a_server_that_breaks_off_are_told() -> Result<()> {
    let place = Place::new()?;
    let here = place.path().display();
    Authority::new("Site Root")?.issue(&place, "web", "web.example", Until::Days(90))?;
    let servers = format!(
        "server {{ listen 443 ssl; ssl_reject_handshake on; }}\n\
         server {{ listen 80; return 444; }}\n\
         server {{ listen 444 ssl; ssl_certificate {here}/web.crt; \
         ssl_certificate_key {here}/web.key; return 200; }}"
    );
    let start = format!("{}up 443\n", nginx(&place, &servers)?);
    let bare = "unset SSL_CERT_FILE SSL_CERT_DIR\nmount -t tmpfs tmpfs /etc/ssl/certs\n";
    let table = [
        (
            "https://127.0.0.1:444/",
            bare,
            "TLS_NO_ROOTS",
            "apt-get install ca-certificates",
        ),
        (
            "https://127.0.0.1/",
            "",
            "TLS_FAILED",
            "the TLS handshake failed",
        ),
        (
            "http://127.0.0.1/",
            "",
            "HTTP_FAILED",
            "the exchange failed",
        ),
    ];
    for (url, before, code, word) in table {
        let script = format!("{start}{before}");
        place
            .doctor("urls", &required(url), &script)
            .await?
            .expect("fail", code, &[word])?;
    }
    Ok(())
}

#[tokio::test]
async fn answers_and_redirects_of_a_web_server_are_told() -> Result<()> {
    let mut servers = String::new();
    for (port, answer) in [
        (80, "return 503;"),
        (81, "return 302 http://127.0.0.1:81/again;"),
        (82, "return 302 http://127.0.0.1/next?key=secret;"),
        (83, "return 302 http://127.0.0.1:84/;"),
        (84, "return 407;"),
    ] {
        writeln!(servers, "server {{ listen {port}; {answer} }}")?;
    }
    let table = [
        ("http://127.0.0.1/", "fail", "HTTP_STATUS", "503"),
        (
            "http://127.0.0.1:81/",
            "fail",
            "HTTP_REDIRECTS",
            "redirect: to",
        ),
        (
            "http://127.0.0.1:82/",
            "fail",
            "HTTP_STATUS",
            "redirect: to http://127.0.0.1",
        ),
        ("http://127.0.0.1:83/", "pass", "REACHED", "302"),
        ("http://127.0.0.1:84/", "fail", "PROXY_REFUSED", "login"),
        ("https://127.0.0.1:84/", "fail", "TLS_NOT_SPOKEN", "http://"),
    ];
    for (url, outcome, code, word) in table {
        let place = Place::new()?;
        let start = format!("{}up 84", nginx(&place, &servers)?);
        let seen = place.doctor("urls", &required(url), &start).await?;
        seen.expect(outcome, code, &[word])?;
        ensure!(!seen.text().contains("secret"), "{seen:?}");
    }
    Ok(())
}

#[tokio::test]
async fn the_proxy_in_force_is_named_when_it_is_down_or_in_the_way() -> Result<()> {
    let down = "export http_proxy=http://127.0.0.1:3128";
    Place::new()?
        .doctor("urls", &required("http://web.example/"), down)
        .await?
        .expect(
            "fail",
            "PROXY_UNREACHABLE",
            &["127.0.0.1:3128", "systemctl cat"],
        )?;
    let place = Place::new()?;
    let start = nginx(&place, "server { listen 3128; return 444; }")?;
    let breaks = format!("{start}up 3128\n{down}");
    place
        .doctor("urls", &required("http://web.example/"), &breaks)
        .await?
        .expect("fail", "PROXY_FAILED", &["no_proxy=web.example"])
}

#[tokio::test]
async fn a_service_that_takes_connections_and_says_nothing_is_told() -> Result<()> {
    let silent = "python3 -c 'import socket, time\n\
                  s = socket.create_server((\"127.0.0.1\", 80))\ntime.sleep(60)' &\nup 80\n";
    Place::new()?
        .doctor("urls", &required("http://127.0.0.1/"), silent)
        .await?
        .expect("fail", "HTTP_TIMED_OUT", &["silent"])
}

/// A place with nginx on port 80, whose dnsmasq answers `*.blob.example.net`, knows one name of it
/// to be gone, and logs what it is asked; `config` requires the wildcard.
fn wildcard() -> Result<(Place, String, String)> {
    let mut place = Place::new()?;
    let log = place.file("queries.log", "")?;
    let options = format!(
        "--log-queries --log-facility={} --address=/blob.example.net/127.0.0.1 \
         --address=/gone.blob.example.net/",
        log.display()
    );
    let names = dnsmasq(&mut place, "127.0.0.9", &options)?;
    let start = nginx(&place, "server { listen 80; return 200; }")?;
    let config = format!(
        "{}observed_in = [{:?}]\n",
        required("http://*.blob.example.net/"),
        log.display().to_string()
    );
    // What the server says of itself as it starts is nobody's use of a name.
    let forget = ": >\"$HERE/queries.log\"\n";
    Ok((place, format!("{names}{forget}{start}up 80\n"), config))
}

#[tokio::test]
async fn a_wildcard_is_tried_by_the_names_that_this_machine_uses() -> Result<()> {
    let (mut place, script, config) = wildcard()?;
    place.doctor("urls", &config, &script).await?.expect(
        "not_applicable",
        "URL_NOT_OBSERVED",
        &["no name of *.blob.example.net has been seen here yet"],
    )?;

    // Somebody uses two names. One is gone by now, which is no sign of a block.
    let uses = "getent hosts acct1.blob.example.net >/dev/null\n\
                getent hosts gone.blob.example.net >/dev/null || true\n\
                until_true grep -q gone.blob \"$HERE/queries.log\"\n";
    let used = format!("{script}{uses}");
    place.doctor("urls", &config, &used).await?.expect(
        "pass",
        "REACHED",
        &[
            "http://acct1.blob.example.net/",
            "observed: *.blob.example.net by",
            "queries.log",
        ],
    )?;
    let blocked = format!(
        "{used}nft add table inet t\n\
         nft add chain inet t out '{{ type filter hook output priority 0; }}'\n\
         nft add rule inet t out tcp dport 80 drop\n"
    );
    let seen = place.doctor("urls", &config, &blocked).await?;
    seen.expect("fail", "TCP_TIMED_OUT", &["acct1.blob.example.net"])?;

    // An entry of the hosts file is a name that somebody thought of, and mostly the block itself.
    let hosts = "127.0.0.1 localhost\n203.0.113.9 acct2.blob.example.net\n";
    place.over("/etc/hosts", hosts)?;
    place.doctor("urls", &config, &script).await?.expect(
        "fail",
        "HOSTS_FILE",
        &["blocked by /etc/hosts line 2: 203.0.113.9 acct2.blob.example.net"],
    )
}

#[tokio::test]
async fn urls_that_cannot_be_tried_are_told_and_not_tried() -> Result<()> {
    // What the pool said last, as the agent keeps it.
    let policy = |url: &str| {
        format!(
            "mkdir -p \"$HERE/agent/data\"\n\
             cat >\"$HERE/agent/data/policy.json\" <<'END'\n\
             {{\"revision\":\"desks-1\",\"checks\":[],\"urls\":[{{\"url\":\"{url}\",\
             \"role\":\"token\"}}],\"expected_domain\":\"\"}}\nEND\n"
        )
    };
    let table = [
        ("http://127.0.0.1:22/", "URL_NOT_ALLOWED", "agent.toml"),
        (
            "https://user:secret@web.example/",
            "URL_NOT_ALLOWED",
            "agent.toml",
        ),
        ("https://a.*.example.net/", "URL_INVALID", "pool's policy"),
    ];
    for (url, code, word) in table {
        let seen = Place::new()?.doctor("urls", "", &policy(url)).await?;
        seen.expect("fail", code, &[word])?;
        ensure!(!seen.text().contains("secret"), "{seen:?}");
    }
    Ok(())
}
