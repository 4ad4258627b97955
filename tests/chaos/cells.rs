//! Accounts in cells: several PostgreSQL clusters that know nothing of each other, one
//! configuration, and a feeder that puts each transaction where its account is served.

use crate::stage::{Stage, server};
use crate::support::eventually;

/// In each cell.
const TRANSACTIONS: usize = 200;

#[tokio::test]
async fn two_clusters_under_one_configuration_each_poll_their_own_accounts_and_no_others() {
    let (first, database) = server(&[]).await;
    let (second, other) = server(&[]).await;
    let stage = Stage::over(database);
    let mut beside = Stage::over(other);
    beside.ask_at(stage.provider.address);
    // Two of each: whatever dies in a cell is taken over within it.
    let replicas = [stage.replica_of("dusupay/*"), stage.replica_of("dusupay/*")];
    let others = [beside.replica_of("dapi/*"), beside.replica_of("dapi/*")];
    let scripts = ["ok9", "fail9", "action3x4-ok3"];
    let fed = stage.insert_of("dusupay", TRANSACTIONS, &scripts).await;
    let fed_beside = beside.insert_of("dapi", TRANSACTIONS, &scripts).await;
    stage.asked(2 * TRANSACTIONS as u64).await;
    let [dies, lives] = replicas;
    dies.kill();
    eventually("both cells have come to their end", || async { (stage.is_ended().await && beside.is_ended().await).then_some(()) })
        .await;
    for (name, cell, fed) in [("first", &stage, &fed), ("second", &beside, &fed_beside)] {
        let lost = cell.lost(fed).await;
        let early = cell.early().await;
        println!("cells: {name}: {} payments, {} lost, {} early, audit clean", fed.len(), lost.len(), early.len());
        assert!(lost.is_empty() && early.is_empty(), "{name}: lost {lost:#?}, early {early:#?}");
        let foreign = "select count(distinct provider) from paypoll.polls";
        assert_eq!(cell.count(foreign).await, 1, "{name}: one provider's accounts are polled here");
    }
    assert_eq!(beside.requests(), 0, "all of it went to one provider's host");
    assert_eq!(lives.told("unroutable").len() + others[0].told("unroutable").len(), 0);
    drop((lives, others, first, second));
}
