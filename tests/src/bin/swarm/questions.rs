//! `CheckHost` beside a rpc that does nothing, on the same broker: how many a second, how long each
//! takes, and what it costs the broker.
//!
//! Both are asked through the same client, which takes answers as bytes: what it would cost to read
//! them is not the broker's.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use http::uri::PathAndQuery;
use muster_proto::v1::{CheckHostRequest, Intent};
use muster_tests::clients::{self, Credentials};
use prost::{
    Message as _,
    bytes::{Buf as _, BufMut as _, Bytes},
};
use tokio::task::JoinSet;
use tonic::{
    Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::Channel,
};

use crate::{
    identities::Identities,
    meter,
    options::Questions,
    report::{Asked, Latency},
    stage::Stage,
};

/// Budget: throughput beside that of the rpc that does nothing.
const RATIO: f64 = 0.95;

const NOOP: &str = "/grpc.health.v1.Health/Check";
const CHECK: &str = "/muster.v1.ConnectionService/CheckHost";

/// Asks in turns, and reports.
pub(crate) async fn run(script: &Questions, stage: &mut Stage<'_>) -> Result<()> {
    let front_end = clients::issue(&stage.broker, "frontend", "asker").await?;
    let mut rounds = Vec::new();
    for round in 0..script.rounds.max(1) {
        for rpc in [NOOP, CHECK] {
            stage.progress.say(&format!("round {}: {rpc}", round + 1));
            rounds.push(ask(script, stage, &front_end, rpc).await?);
        }
    }
    let total = |rpc: &str, of: fn(&Asked) -> f64| {
        let asked = rounds.iter().filter(|asked| asked.rpc == rpc);
        asked.map(of).sum::<f64>().max(f64::MIN_POSITIVE)
    };
    let throughput = |asked: &Asked| asked.per_second;
    let ratio = total(CHECK, throughput) / total(NOOP, throughput);
    let cpu = |asked: &Asked| asked.server_us_per_call;
    stage.report.asked_cpu_ratio = Some(total(CHECK, cpu) / total(NOOP, cpu));
    stage.report.asked = rounds;
    stage.report.asked_ratio = Some(ratio);
    if ratio < RATIO {
        let why =
            format!("CheckHost reaches {ratio:.3} of a rpc that does nothing, budget {RATIO}");
        stage.report.fail(why);
    }
    Ok(())
}

async fn ask(
    script: &Questions,
    stage: &Stage<'_>,
    front_end: &Credentials,
    rpc: &'static str,
) -> Result<Asked> {
    let mut channels = Vec::new();
    for _ in 0..script.connections.max(1) {
        channels.push(front_end.connect().await?);
    }
    let broker = stage.broker_id()?;
    let (cpu, begun) = (meter::cpu(broker)?, Instant::now());
    let end = begun + script.length.0;
    let mut callers = JoinSet::new();
    for caller in 0..script.callers.max(1) {
        let channel = channels[caller % channels.len()].clone();
        let agents = script.common.agents;
        callers.spawn(async move {
            let first = caller.wrapping_mul(7919);
            let names = (first..).map(move |number| Identities::name(number % agents));
            call_until(channel, rpc, names, end).await
        });
    }
    let mut times = Vec::new();
    while let Some(done) = callers.join_next().await {
        times.extend(done.context("a caller panicked")??);
    }
    let seconds = begun.elapsed().as_secs_f64();
    let cpu = meter::cpu(broker)? - cpu;
    ensure!(!times.is_empty(), "no answers");
    let calls = f64::from(u32::try_from(times.len())?);
    Ok(Asked {
        rpc: rpc.to_owned(),
        per_second: calls / seconds,
        server_us_per_call: cpu.as_secs_f64() * 1e6 / calls,
        time: Latency::of(times).unwrap_or_default(),
    })
}

/// Calls again and again, and gives how long each call took.
async fn call_until(
    channel: Channel,
    rpc: &'static str,
    mut names: impl Iterator<Item = String>,
    end: Instant,
) -> Result<Vec<Duration>> {
    let mut grpc = Grpc::new(channel);
    let mut times = Vec::new();
    while Instant::now() < end {
        let question = if rpc == CHECK {
            let request = CheckHostRequest {
                name: names.next().unwrap_or_default(),
                intent: Intent::New.into(),
                user_key: String::new(),
            };
            request.encode_to_vec()
        } else {
            Vec::new()
        };
        let begun = Instant::now();
        grpc.ready().await?;
        let path = PathAndQuery::from_static(rpc);
        let request = Request::new(Bytes::from(question));
        let answer = grpc.unary(request, path, AsBytes).await?;
        ensure!(!answer.get_ref().is_empty(), "an empty answer");
        times.push(begun.elapsed());
    }
    Ok(times)
}

/// Messages as the bytes that they are on the wire.
#[derive(Clone, Copy)]
struct AsBytes;

impl Codec for AsBytes {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for AsBytes {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for AsBytes {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
