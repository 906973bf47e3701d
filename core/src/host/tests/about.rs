//! What a host says about itself, beside its checks.

use super::*;

fn instance(kind: &str) -> CloudInstance {
    CloudInstance {
        provider: "aws".into(),
        instance_id: "i-0123".into(),
        region: "eu-west-1".into(),
        instance_type: kind.into(),
    }
}

fn cloud(world: &World) -> Option<CloudInstance> {
    world.host.facts().about.cloud.clone()
}

#[test]
fn a_cloud_s_instance_is_kept_for_its_boot_and_stored_when_it_is_new() {
    let mut world = World::available();
    assert_eq!(cloud(&world), None);
    world.cloud = Some(instance("m5.large"));
    assert!(world.report(&[]).persist, "it is new");
    assert!(!world.report(&[]).persist, "and then it is not");
    assert_eq!(cloud(&world), Some(instance("m5.large")));

    // A new process of the agent whose metadata service is out of reach knows of none.
    world.cloud = None;
    let _ = world.stream_ends();
    let _ = world.open();
    let _ = world.report(&[]);
    assert_eq!(cloud(&world), Some(instance("m5.large")));
    world.restart_broker(secs(2), false);
    assert_eq!(cloud(&world), Some(instance("m5.large")));

    // Machines are resized while they are off.
    world.boot += 1;
    let _ = world.open();
    assert_eq!(cloud(&world), None);
    world.cloud = Some(instance("m5.xlarge"));
    let _ = world.report(&[]);
    assert_eq!(cloud(&world), Some(instance("m5.xlarge")));
}
