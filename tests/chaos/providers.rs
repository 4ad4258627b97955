//! Trouble with the providers.

use crate::network::Weather;
use crate::stage::Stage;
use crate::tally::{Journal, Trouble, lasts};
use std::time::Duration;

#[tokio::test]
async fn a_brown_out_of_the_providers_opens_their_circuits_and_leaves_no_trace_in_any_state() {
    let mut stage = Stage::new().await;
    // A probe every half second.
    stage.set_of_all("CIRCUIT", "{ failures = 20, probe_after = \"5m\" }");
    let network = stage.provider_proxy();
    let replica = stage.replica();
    let inserted = stage.insert(60, 13).await;
    stage.steady(&inserted).await;
    let mut trouble = Trouble::begins();
    network.turn(Weather::Unavailable);
    replica.tells_times("circuit_opened", 2).await;
    for weather in [Weather::Stalls, Weather::Resets] {
        network.turn(weather);
        lasts(Duration::from_millis(1200)).await;
    }
    let opened = replica.told("circuit_opened").len();
    network.turn(Weather::Fair);
    trouble.is_over();
    stage.settle("providers answer 503, hang, and reset", &inserted, Journal::Inexact, trouble).await;
    assert_eq!((opened, replica.told("circuit_closed").len()), (2, 2), "each account's circuit opened and closed once");
    // Requests that were under way when the trouble began broke off.
    let failed = stage.count("select count(*) from paypoll.polls where outcome in ('server_error', 'connection_failed')").await;
    assert!(failed >= 40, "{failed} failures opened two circuits of 20 each");
}
