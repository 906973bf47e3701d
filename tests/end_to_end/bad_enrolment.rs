//! Enrolment with what is wrong: each refused with its code and reason, and the broker goes on.

use anyhow::{Result, ensure};
use muster_core::model::HostName;
use muster_proto::v1::{CreateTokenRequest, EnrollRequest, HostStatus};
use muster_runtime::identity::{csr_for_key, new_key_and_csr};
use muster_tests::{broker::Broker, clients::Token, fleet::LightAgent, wait};
use tonic::Code;

use crate::support::{assert_goes_on, assert_refused, status_of};

#[tokio::test]
async fn an_unknown_token_is_refused() -> Result<()> {
    let broker = Broker::start().await?;
    let good = broker.token("default", None, 1).await?;
    for token in [
        "",
        "no-token",
        &format!("{}x", good.token),
        &"t".repeat(5000),
    ] {
        let wrong = Token {
            token: token.to_owned(),
            ..good.clone()
        };
        let status = status_of(broker.way_in().enrol(&wrong, "host-1").await)?;
        assert_refused(&status, Code::Unauthenticated, "TOKEN_UNKNOWN")?;
        ensure!(
            token.len() < 8 || !status.message().contains(token),
            "the refusal repeats the token"
        );
    }
    assert_goes_on(&broker).await
}

#[tokio::test]
async fn a_used_token_is_refused_to_another_key_and_honoured_for_the_same() -> Result<()> {
    let broker = Broker::start().await?;
    let token = broker.token("default", None, 1).await?;
    let name = HostName::new("host-1")?;
    let (key, csr) = new_key_and_csr(&name)?;
    let request = |csr: Vec<u8>| EnrollRequest {
        token: token.token.clone(),
        csr: csr.into(),
        name: name.to_string(),
        request_id: "again".to_owned(),
    };
    let mut client = broker.way_in().enrolment(&token.ca_pin).await?;
    let first = client.enroll(request(csr)).await?.into_inner();
    // The reply was lost: the same key asks again, with a request signed anew.
    let again = client.enroll(request(csr_for_key(&name, &key)?)).await?;
    ensure!(
        again.into_inner().host_id == first.host_id,
        "another host id for the same token and key"
    );
    let (_, other) = new_key_and_csr(&name)?;
    let status = client.enroll(request(other)).await.unwrap_err();
    assert_refused(&status, Code::Unauthenticated, "TOKEN_USED")?;
    assert_goes_on(&broker).await
}

#[tokio::test]
async fn an_expired_token_is_refused() -> Result<()> {
    let broker = Broker::start().await?;
    let request = CreateTokenRequest {
        ttl_ms: 1,
        uses: 1,
        ..CreateTokenRequest::default()
    };
    let answer = broker.operator().await?.create_token(request).await?;
    let answer = answer.into_inner();
    let token = Token {
        token: answer.token,
        ca_pin: answer.ca_pin,
    };
    // The token ends a millisecond after it was made; the first try may come before that.
    wait::until("the token to expire", wait::PATIENCE, || async {
        let (_, csr) = new_key_and_csr(&HostName::new("host-1")?)?;
        let request = EnrollRequest {
            token: token.token.clone(),
            csr: csr.into(),
            name: format!("host-{:08x}", rand::random::<u32>()),
            request_id: String::new(),
        };
        let mut client = broker.way_in().enrolment(&token.ca_pin).await?;
        match client.enroll(request).await {
            Ok(_) => anyhow::bail!("enrolled"),
            Err(status) => assert_refused(&status, Code::Unauthenticated, "TOKEN_EXPIRED"),
        }
    })
    .await?;
    assert_goes_on(&broker).await
}

#[tokio::test]
async fn a_token_for_one_name_enrols_no_other() -> Result<()> {
    let broker = Broker::start().await?;
    let token = broker.token("default", Some("host-1"), 1).await?;
    let status = status_of(broker.way_in().enrol(&token, "host-2").await)?;
    assert_refused(&status, Code::PermissionDenied, "TOKEN_FOR_OTHER_NAME")?;
    // The refusal has not used the token up.
    broker.way_in().enrol(&token, "host-1").await?;
    assert_goes_on(&broker).await
}

#[tokio::test]
async fn a_taken_name_is_refused_and_its_holder_goes_on() -> Result<()> {
    let broker = Broker::start().await?;
    let token = broker.token("default", None, 2).await?;
    let holder = LightAgent::start(broker.way_in().enrol(&token, "host-1").await?);
    holder.reported().await?;
    let status = status_of(broker.way_in().enrol(&token, "host-1").await)?;
    assert_refused(&status, Code::AlreadyExists, "NAME_TAKEN")?;
    ensure!(broker.verdict("host-1").await?.status() == HostStatus::Available);
    ensure!(holder.state().reported, "the holder lost its session");
    assert_goes_on(&broker).await
}

#[tokio::test]
async fn bad_names_are_refused() -> Result<()> {
    let broker = Broker::start().await?;
    let token = broker.token("default", None, 10).await?;
    let mut client = broker.way_in().enrolment(&token.ca_pin).await?;
    let long = "a".repeat(300);
    for name in ["", "Host", "a_b", "-a", "a/../b", "a\u{1b}[31m", "ä", &long] {
        let (_, csr) = new_key_and_csr(&HostName::new("any")?)?;
        let request = EnrollRequest {
            token: token.token.clone(),
            csr: csr.into(),
            name: name.to_owned(),
            request_id: String::new(),
        };
        let status = client.enroll(request).await.unwrap_err();
        assert_refused(&status, Code::InvalidArgument, "NAME_INVALID")?;
        ensure!(!status.message().contains('\u{1b}'), "a raw escape is told");
    }
    assert_goes_on(&broker).await
}

#[tokio::test]
async fn a_request_that_is_no_csr_is_refused() -> Result<()> {
    let broker = Broker::start().await?;
    let token = broker.token("default", None, 1).await?;
    let mut client = broker.way_in().enrolment(&token.ca_pin).await?;
    let (_, good) = new_key_and_csr(&HostName::new("host-1")?)?;
    let mut unproven = good.clone();
    // The last byte is of the signature: proof of possession fails.
    if let Some(last) = unproven.last_mut() {
        *last ^= 1;
    }
    for csr in [
        vec![],
        b"no csr".to_vec(),
        good[..40].to_vec(),
        unproven,
        vec![0x30; 9000],
    ] {
        let request = EnrollRequest {
            token: token.token.clone(),
            csr: csr.into(),
            name: "host-1".to_owned(),
            request_id: String::new(),
        };
        let status = client.enroll(request).await.unwrap_err();
        assert_refused(&status, Code::InvalidArgument, "CSR_INVALID")?;
    }
    // None of them used the token up.
    broker.way_in().enrol(&token, "host-1").await?;
    assert_goes_on(&broker).await
}

#[tokio::test]
async fn the_wrong_pin_is_noticed_before_the_token_is_sent() -> Result<()> {
    let broker = Broker::start().await?;
    let token = broker.token("default", None, 1).await?;
    let wrong = format!("sha256:{}", "0".repeat(64));
    let error = broker.way_in().enrolment(&wrong).await.unwrap_err();
    let text = format!("{error:#}");
    ensure!(
        text.contains("another pin") && text.contains(&token.ca_pin),
        "{text}"
    );
    // Nobody has used the token.
    broker.way_in().enrol(&token, "host-1").await?;
    assert_goes_on(&broker).await
}
