//! This node as a service in the real catalogue.

use crate::harness::{TIMING, config};
use hathi_consul::{ConsulConfig, ServiceConfig, open};
use hathi_dcs::conformance::{soon, until};
use hathi_dcs::{Dcs, MemberData, MemberName, Role, Scope, State};
use hathi_test_support::{Consul, ConsulOptions};
use serde_json::{Value, json};

fn member(role: Role, state: State) -> MemberData {
    MemberData {
        conn_url: Some("postgres://127.0.0.1:5433/postgres".into()),
        api_url: Some("http://127.0.0.1:8009/patroni".into()),
        role: Some(role),
        state: Some(state),
        ..MemberData::default()
    }
}

async fn services(consul: &Consul) -> Value {
    let answer = consul.request("GET", "/v1/agent/services", None).await;
    answer.expect("a healthy Consul").json()
}

/// Proves DCS-123, CFG-314 and CFG-315: registered while it runs, with its role and a check of our
/// REST API; changed with the role; gone when it stops. What an operator set is not undone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_node_is_a_service() {
    let consul = Consul::start(ConsulOptions { members: 1, ..ConsulOptions::default() }).await;
    let service = ServiceConfig {
        tags: vec!["db".into()],
        check_interval: "7s".into(),
        check_tls_server_name: None,
    };
    let config = ConsulConfig { service: Some(service), ..config(&consul) };
    let scope = Scope::new("service", "My.Cl_1");
    let me = open(config, scope, MemberName::from("pg1"), TIMING);
    let id = "My.Cl_1/pg1";

    me.write_member(&member(Role::Replica, State::Starting), soon()).await.expect("it may");
    assert_eq!(services(&consul).await, json!({}), "it does not serve yet");

    me.write_member(&member(Role::Replica, State::Running), soon()).await.expect("it may");
    let seen = services(&consul).await[id].clone();
    let facts = ["Service", "Address", "Port", "Tags", "EnableTagOverride"].map(|key| &seen[key]);
    let expected = json!(["my-cl-1", "127.0.0.1", 5433, ["db", "replica"], true]);
    assert_eq!(json!(facts), expected);
    let checks = consul.request("GET", "/v1/agent/checks", None).await.expect("a list").json();
    let check = &checks[format!("service:{id}")];
    let check = json!([check["Definition"], check["ServiceID"], check["Type"]]);
    assert_eq!(check[1], id, "{checks}");

    me.write_member(&member(Role::Primary, State::Running), soon()).await.expect("it may");
    assert_eq!(services(&consul).await[id]["Tags"], json!(["db", "primary", "master"]));
    let catalogue = || async {
        let path = "/v1/catalog/service/my-cl-1?tag=primary";
        let found = consul.request("GET", path, None).await.ok()?.json();
        (found[0]["ServicePort"] == 5433).then_some(())
    };
    until("clients find it", 10_000, catalogue).await;

    me.write_member(&member(Role::Primary, State::Stopped), soon()).await.expect("it may");
    assert_eq!(services(&consul).await, json!({}), "it serves no more");
}

/// Proves DCS-123: without `register_service` nothing is registered, and a catalogue that refuses
/// costs the member record nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_record_does_not_hang_on_the_service() {
    let consul = Consul::start(ConsulOptions { members: 1, ..ConsulOptions::default() }).await;
    let running = member(Role::Replica, State::Running);
    let scope = || Scope::new("service", "batman");
    let quiet = open(config(&consul), scope(), MemberName::from("a"), TIMING);
    quiet.write_member(&running, soon()).await.expect("it may");
    assert_eq!(services(&consul).await, json!({}));

    let nonsense = ServiceConfig {
        tags: Vec::new(),
        check_interval: "seldom".into(),
        check_tls_server_name: None,
    };
    let config = ConsulConfig { service: Some(nonsense), ..config(&consul) };
    let refused = open(config, scope(), MemberName::from("b"), TIMING);
    refused.write_member(&running, soon()).await.expect("the record is written");
    assert_eq!(services(&consul).await, json!({}));
}
