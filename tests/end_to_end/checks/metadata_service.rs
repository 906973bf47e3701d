//! `metadata_service` at its real address in a namespace: nginx answers as each cloud documents it.

use std::fmt::Write as _;

use anyhow::{Result, ensure};

use super::{Place, Seen, nginx};

const ADDRESS: &str = "ip addr add 169.254.169.254/32 dev lo\n";

/// A flavour: provider, what nginx does, what must be told. Each answer is cut from the provider's
/// documents, whose place stands beside it.
const FLAVOURS: [(&str, &str, &[&str]); 5] = [
    (
        // learn.microsoft.com/azure/virtual-machines/instance-metadata-service
        "azure",
        r#"location = /metadata/instance {
            if ($http_metadata != "true") { return 400; }
            if ($arg_api-version = "") { return 400; }
            return 200 '{"compute":{"location":"westeurope","vmId":"02aab8a4-74ef","vmSize":"Standard_A3"}}';
        }"#,
        &["02aab8a4-74ef", "Standard_A3", "westeurope"],
    ),
    (
        // docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html
        "aws",
        r#"location = /latest/api/token {
            if ($request_method != PUT) { return 405; }
            if ($http_x_aws_ec2_metadata_token_ttl_seconds = "") { return 400; }
            return 200 'AQAEAsecret==';
        }
        location = /latest/dynamic/instance-identity/document {
            if ($http_x_aws_ec2_metadata_token != "AQAEAsecret==") { return 401; }
            return 200 '{"instanceId":"i-1234567890abcdef0","instanceType":"t2.micro","region":"us-west-2"}';
        }"#,
        &["i-1234567890abcdef0", "t2.micro", "us-west-2"],
    ),
    (
        // cloud.google.com/compute/docs/metadata/querying-metadata
        "gcp",
        r#"location = /computeMetadata/v1/instance/ {
            if ($http_metadata_flavor != "Google") { return 403; }
            add_header Metadata-Flavor Google;
            return 200 '{"id":4520031799277581759,"machineType":"projects/7/machineTypes/e2-medium","zone":"projects/7/zones/europe-west1-b"}';
        }"#,
        &["4520031799277581759", "e2-medium", "europe-west1-b"],
    ),
    (
        // docs.openstack.org/nova/latest/user/metadata.html
        "openstack",
        r#"location = /openstack/latest/meta_data.json {
            return 200 '{"uuid":"d8e02d56-2648-49a3","availability_zone":"nova","name":"test"}';
        }"#,
        &["d8e02d56-2648-49a3", "nova"],
    ),
    (
        // docs.digitalocean.com/reference/api/metadata
        "digitalocean",
        r#"location = /metadata/v1.json {
            return 200 '{"droplet_id":2756294,"hostname":"sample","region":"nyc3"}';
        }"#,
        &["2756294", "nyc3"],
    ),
];

fn config(provider: &str) -> String {
    format!("[check.metadata_service]\ntimeout = \"3s\"\nprovider = \"{provider}\"\n")
}

fn served(place: &Place, locations: &str) -> Result<String> {
    let server = format!("server {{ listen 169.254.169.254:80; {locations} }}");
    Ok(format!("{ADDRESS}{}up 80\n", nginx(place, &server)?))
}

async fn azure(place: &Place, before: &str) -> Result<Seen> {
    let script = format!("{}{before}", served(place, FLAVOURS[0].1)?);
    place
        .doctor("metadata_service", &config("azure"), &script)
        .await
}

/// No proxy but those that a test sets.
fn without_proxies() -> Result<Place> {
    let mut place = Place::new()?;
    place.over("/etc/environment", "")?;
    Ok(place)
}

const NO_APT: &str = "mount -t tmpfs tmpfs /etc/apt/apt.conf.d\n";

#[tokio::test]
async fn every_cloud_is_asked_in_its_own_way_and_tells_the_instance() -> Result<()> {
    for (provider, locations, words) in FLAVOURS {
        let place = without_proxies()?;
        let script = format!("{NO_APT}{}", served(&place, locations)?);
        let seen = place
            .doctor("metadata_service", &config(provider), &script)
            .await?;
        seen.expect("pass", "METADATA_REACHED", words)?;
        ensure!(!seen.text().contains("secret"), "a token is told: {seen:?}");
    }
    Ok(())
}

#[tokio::test]
async fn no_route_a_firewall_and_a_closed_port_are_told_apart() -> Result<()> {
    let drop = format!(
        "{ADDRESS}nft add table inet t\n\
         nft add chain inet t in '{{ type filter hook input priority 0; }}'\n\
         nft add rule inet t in ip daddr 169.254.169.254 drop\n"
    );
    let table = [
        ("", "METADATA_NO_ROUTE", "ip route add 169.254.169.254/32"),
        (
            &drop,
            "METADATA_DROPPED",
            "outbound TCP 80 to 169.254.169.254 times out",
        ),
        (ADDRESS, "METADATA_CLOSED", "refuses connections on port 80"),
    ];
    for (script, code, word) in table {
        Place::new()?
            .doctor("metadata_service", &config("azure"), script)
            .await?
            .expect("fail", code, &[word])?;
    }
    Ok(())
}

#[tokio::test]
async fn something_else_a_refusal_silence_and_a_break_are_told_apart() -> Result<()> {
    let table = [
        (
            "location / { return 200 '<html>sign in</html>'; }",
            "METADATA_OTHER",
        ),
        ("location / { return 404; }", "METADATA_STATUS"),
        ("location / { return 444; }", "METADATA_BROKEN"),
    ];
    for (locations, code) in table {
        let place = Place::new()?;
        let script = served(&place, locations)?;
        place
            .doctor("metadata_service", &config("azure"), &script)
            .await?
            .expect("fail", code, &[])?;
    }
    let silent = format!(
        "{ADDRESS}python3 -c 'import socket, time\n\
         s = socket.create_server((\"169.254.169.254\", 80))\ntime.sleep(60)' &\nup 80\n"
    );
    Place::new()?
        .doctor("metadata_service", &config("azure"), &silent)
        .await?
        .expect("fail", "METADATA_SILENT", &[])
}

#[tokio::test]
async fn a_proxy_of_the_machine_is_a_warning_with_the_line_to_add() -> Result<()> {
    let mut place = without_proxies()?;
    let mut environment = "LANG=C\n".to_owned();
    writeln!(
        environment,
        "http_proxy=http://user:secret@proxy.example:3128"
    )?;
    writeln!(environment, "no_proxy=localhost")?;
    place.over("/etc/environment", &environment)?;
    let seen = azure(&place, NO_APT).await?;
    seen.expect(
        "warn",
        "METADATA_PROXY",
        &[
            "/etc/environment line 2",
            "echo 'no_proxy=localhost,169.254.169.254' >> /etc/environment",
        ],
    )?;
    ensure!(!seen.text().contains("secret"), "{seen:?}");

    let excepted = format!("{environment}no_proxy=localhost,169.254.169.254\n");
    place.over("/etc/environment", &excepted)?;
    azure(&place, NO_APT)
        .await?
        .expect("pass", "METADATA_REACHED", &[])?;

    let apt = format!(
        "{NO_APT}echo 'Acquire::http::Proxy \"http://proxy.example:3128\";' \
         >/etc/apt/apt.conf.d/01proxy\n"
    );
    azure(&place, &apt).await?.expect(
        "warn",
        "METADATA_PROXY",
        &[
            "/etc/apt/apt.conf.d/01proxy line 1",
            "Acquire::http::Proxy::169.254.169.254",
        ],
    )?;
    let own = format!("{NO_APT}export http_proxy=http://127.0.0.1:1\n");
    azure(&place, &own)
        .await?
        .expect("warn", "METADATA_PROXY", &["the agent's environment"])
}
