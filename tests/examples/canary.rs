//! A new build gets its share of new visitors, and the share moves while everything runs.

use crate::example::Example;
use crate::lab::Instance;
use crate::visitor::{Request, header, name, names, set};

#[test]
fn a_tenth_go_to_the_new_build_until_the_weight_is_shifted() {
    let example = Example::open("canary");
    let mut hapilot = example.serve();
    // weighted round robin is exact over a whole round
    assert_eq!(share(&example), 10);
    assert_eq!(Request::get("/").header("Cookie", "BUILD=canary").ask(&example, 80).status, 200);
    let stays = Request::get("/").header("Cookie", "BUILD=canary");
    assert_eq!(names(&example, &stays, 10), set(["canary"]));

    set_weight(&hapilot, 90);
    assert_eq!(share(&example), 50);
    example.reload_under_load(&mut hapilot, 80, Request::get("/").talk());
    assert_eq!(share(&example), 50, "what was set survives a reload");
    assert_eq!(names(&example, &stays, 10), set(["canary"]));
    set_weight(&hapilot, 0);
    assert_eq!(share(&example), 0, "taken back");
    assert_eq!(names(&example, &stays, 10), set(["canary"]), "who has its cookie stays");
    example.end(hapilot);
}

/// How many of a hundred new visitors meet the new build.
fn share(example: &Example) -> usize {
    let visit = |_| {
        let answer = Request::get("/").ask(example, 80);
        let name = name(&answer).to_owned();
        assert_eq!(header(&answer, "x-build"), Some(&*name));
        let cookie = format!("BUILD={name}; path=/; HttpOnly");
        assert_eq!(header(&answer, "set-cookie"), Some(&*cookie));
        name
    };
    (0..100).map(visit).filter(|name| name == "canary").count()
}

fn set_weight(hapilot: &Instance, weight: u8) {
    let output = hapilot.command(&["weight", "app/canary", &weight.to_string()]);
    assert!(output.status.success(), "{output:?}");
}
