use super::*;

fn table(kind: &str, entries: &[&str]) -> Table {
    let head = format!("# table: t, type: {kind}, size:1024, used:{}", entries.len());
    let mut table = Table::new(Head::read(&head).unwrap());
    for entry in entries {
        table.add(entry);
    }
    table
}

/// As if every kind of data were called what it is shown as.
fn commands(plan: &Plan) -> Vec<String> {
    let spelt = plan.samples().iter().map(|(n, _)| ((*n).to_owned(), (*n).to_owned())).collect();
    let text = |set: &Set| String::from_utf8_lossy(&set.command("t", &spelt)).into_owned();
    plan.sets.iter().map(text).collect()
}

const OLD: &str = "0x55dc: key=192.0.2.1 use=0 exp=599998 server_id=2 gpt0=1 gpc0=7 conn_cnt=5 \
    conn_cur=3 http_req_rate(10000)=9 bytes_in_cnt=0 server_key=s2";
const NEW: &str = "0x7fdb: key=192.0.2.1 use=1 exp=59 shard=0 conn_cnt=5";

#[test]
fn an_entry_is_put_back_with_all_but_its_connections() {
    let plan = put_back(&table("ip", &[OLD]), None, Present::Counts, 0, None);
    assert_eq!(
        commands(&plan),
        ["set table t key 192.0.2.1 data.server_id 2 data.gpt0 1 data.gpc0 7 data.conn_cnt 5 \
          data.http_req_rate 9"]
    );
    let plan = put_back(&table("ip", &[NEW]), None, Present::Counts, 0, None);
    assert_eq!(commands(&plan), ["set table t key 192.0.2.1 data.conn_cnt 5"]);
}

#[test]
fn what_was_counted_meanwhile_is_added_and_a_newer_choice_of_server_stays() {
    let now = "0x1: key=192.0.2.1 use=0 exp=9 server_id=3 gpt0=4 conn_cnt=2";
    let saved = table("ip", &[OLD]);
    let plan = put_back(&saved, Some(&table("ip", &[now])), Present::Counts, 0, None);
    assert_eq!(
        commands(&plan),
        ["set table t key 192.0.2.1 data.gpt0 4 data.gpc0 7 data.conn_cnt 7 data.http_req_rate 9"]
    );
    let plan = put_back(&saved, Some(&table("ip", &[now])), Present::Stays, 0, None);
    assert_eq!(plan, Plan::default());
}

#[test]
fn what_was_put_back_already_in_part_is_not_counted_twice() {
    let saved = table("ip", &[OLD, "0x2: key=192.0.2.2 use=0 exp=9 conn_cnt=6"]);
    let again = |now: &[&str]| {
        commands(&put_back(&saved, Some(&table("ip", now)), Present::Larger, 0, None))
    };
    assert_eq!(again(&[OLD]), ["set table t key 192.0.2.2 data.conn_cnt 6"]);
    assert_eq!(
        again(&[
            "0x1: key=192.0.2.1 use=0 exp=9 server_id=3 gpt0=4 gpc0=8 conn_cnt=2",
            "0x2: key=192.0.2.2 use=0 exp=9 conn_cnt=7"
        ]),
        ["set table t key 192.0.2.1 data.conn_cnt 5 data.http_req_rate 9"]
    );
}

#[test]
fn what_expired_meanwhile_does_not_come_back_and_what_never_expires_does() {
    let saved = table("ip", &[NEW, "0x1: key=192.0.2.2 use=0 exp=0 conn_cnt=1"]);
    let keys = |elapsed| commands(&put_back(&saved, None, Present::Counts, elapsed, None));
    assert_eq!(keys(58).len(), 2);
    assert_eq!(keys(59), ["set table t key 192.0.2.2 data.conn_cnt 1"]);
}

#[test]
fn a_server_is_followed_by_its_name() {
    let saved = table("ip", &["0x1: key=192.0.2.1 use=0 exp=9 server_id=2 server_key=s2"]);
    let servers = Servers::from([("s2".to_owned(), 5)]);
    let plan = put_back(&saved, None, Present::Counts, 0, Some(&servers));
    assert_eq!(commands(&plan), ["set table t key 192.0.2.1 data.server_id 5"]);
    let plan = put_back(&saved, None, Present::Counts, 0, Some(&Servers::new()));
    assert_eq!(commands(&plan), ["set table t key 192.0.2.1 data.server_id 2"]);
}

#[test]
fn a_key_is_written_so_that_haproxy_reads_the_same() {
    for (shown, written) in [
        ("2001:db8::1", Some(&b"2001:db8::1"[..])),
        ("a;b\\ c\\=d\\\\e\"", Some(b"a\\;b\\ c\\=d\\\\e\\\"")),
        ("\\xC3\\xA4\\t<<", Some(b"\\\xc3\\\xa4\\\t\\<\\<")),
        ("line\\nbreak", None),
        ("", None),
        ("\\x1", None),
        ("\\", None),
    ] {
        assert_eq!(word(shown).as_deref(), written, "{shown}");
    }
    let saved = table("string", &["0x1: key=a\\nb use=0 exp=1 gpc0=1", "0x2: key=c use=0 exp=1"]);
    let plan = put_back(&saved, None, Present::Counts, 0, None);
    assert_eq!((commands(&plan), plan.unnamable), (vec!["set table t key c".to_owned()], 1));
}

#[test]
fn an_element_of_an_array_may_be_called_by_its_index() {
    assert_eq!(spellings("conn_cnt"), ["conn_cnt"]);
    assert_eq!(spellings("gpc0_rate"), ["gpc0_rate", "gpc_rate[0]", "gpc_rate"]);
    assert_eq!(spellings("gpt12"), ["gpt12", "gpt[12]"]);
}

#[test]
fn time_that_goes_by_is_no_change_and_a_use_or_a_count_is() {
    let at = |exp: u64, count: u64| {
        table("ip", &[&format!("0x1: key=192.0.2.1 use=0 exp={exp} conn_cnt={count}")])
    };
    assert!(at(9_000, 1).is_as(&at(10_000, 1), 1_000));
    assert!(!at(10_000, 1).is_as(&at(10_000, 1), 1_000));
    assert!(!at(9_000, 2).is_as(&at(10_000, 1), 1_000));
    assert!(!table("ip", &[]).is_as(&at(10_000, 1), 1_000));
}

#[test]
fn heads_are_read_and_binary_keys_cannot_be_set() {
    let head = Head::read("# table: a/b, type: ipv6, size:1048576, used:12").unwrap();
    assert_eq!((head.name.as_str(), head.used, head.is_settable()), ("a/b", 12, true));
    assert!(!Head::read("# table: t, type: binary, size:8, used:1").unwrap().is_settable());
    assert_eq!(Head::read("1 # be_id be_name"), None);
}

#[test]
fn batches_hold_every_command_once() {
    let all: Vec<Vec<u8>> = (0..3000).map(|n| format!("set table t key {n} ").into()).collect();
    let batches = batches(all.iter().cloned());
    assert!(batches.len() > 1);
    let back: Vec<Vec<u8>> =
        batches.iter().flat_map(|b| b.split(|byte| *byte == b';')).map(<[u8]>::to_vec).collect();
    assert_eq!(back, all);
}
