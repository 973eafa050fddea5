//! What learns as a run goes on: every choice on a real decoder, interrupted and not.

use std::path::Path;

use luthier_core::{Param, Seed};
use luthier_params::{Bound, Params};
use luthier_train::{Job, Train};
use luthier_update::Update;

mod job;

use job::{bound, bytes, job, killed_after, lines, model, twelve};

const CHOICES: [(&str, &str); 11] = [
    ("half", "[half]\n"),
    ("green", "[green]\nrho = 0.6\n"),
    ("random", "[sparse.random]\ndensity = 0.1\n"),
    ("lift", "[sparse.lift]\nbudget_rank = 2\nfilter_rank = 4\nupdate_interval = 4\n"),
    ("sara", "[sparse.sara]\ndensity = 0.2\n"),
    ("lottery", "[sparse.lottery]\ndensity = 0.1\n"),
    ("lottery twice", "[sparse.lottery]\ndensity = 0.1\niterations = 2\n"),
    ("half and lora", "[half]\ntrain_head = false\n[lora]\nr = 2\nat = \"logits\"\n"),
    (
        "lift and head",
        "[sparse.lift]\nbudget_rank = 2\nfilter_rank = 4\nupdate_interval = 4\n[full]\nat = \"logits\"\n",
    ),
    ("sara and head", "[sparse.sara]\ndensity = 0.2\n[full]\nat = \"logits\"\n"),
    ("lottery and head", "[sparse.lottery]\ndensity = 0.1\n[full]\nat = \"logits\"\n"),
];

fn config() -> Train {
    let update: Update = toml::from_str("[adamw]\nlearning_rate = 1e-2\n").unwrap();
    Train { update, epochs: 2.0, save_steps: 1, ..Train::default() }
}

fn run(bound: &Bound, config: &Train, out: &Path, resume: bool) {
    let (rows, steps) = twelve();
    let order = |_, _| steps.clone();
    let job = job(bound, config, &rows, &order, out);
    luthier_train::run(&Job { eval: &rows[..2], rounds: bound.form.rounds(), resume, ..job })
        .unwrap();
}

fn numbers(param: &Param) -> Vec<f32> {
    param.var.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn a_resumed_choice_is_bit_equal_to_an_uninterrupted_one() {
    for (name, form) in CHOICES {
        let (whole, straight) = (bound(form), tempfile::tempdir().unwrap());
        run(&whole, &config(), straight.path(), false);
        let steps = 12 * whole.form.rounds() as u64;
        for at in [1, 7, 12, 13, 24, 30].into_iter().filter(|at| *at < steps) {
            let (killed, out) = (bound(form), tempfile::tempdir().unwrap());
            run(&killed, &config(), out.path(), false);
            killed_after(at, out.path());
            let resumed = bound(form);
            run(&resumed, &config(), out.path(), true);
            assert!(bytes(&resumed) == bytes(&whole), "{name} resumed at step {at}: other weights");
            assert_eq!(lines(out.path()), lines(straight.path()), "{name} resumed at step {at}");
        }
    }
}

#[test]
fn what_was_never_chosen_is_what_it_was() {
    for (name, form) in CHOICES {
        let (before, after) = (bound(form), bound(form));
        run(&after, &config(), tempfile::tempdir().unwrap().path(), false);
        let chooser = after.form.choice().unwrap().map_or("sparse", |(key, _)| key);
        let (mut moved, mut all, mut still) = (0, 0, 0);
        for ((before, after), form) in before.params.iter().zip(&after.params).zip(&after.forms) {
            let (was, is) = (numbers(before), numbers(after));
            let changed = was.iter().zip(&is).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
            if *form != chooser {
                // Nobody chooses among another form's variables.
                assert!(changed > was.len() * 9 / 10, "{name}: {changed} of {}", after.name);
                continue;
            }
            (moved, all) = (moved + changed, all + was.len());
            still += usize::from(changed == 0);
            if let Some(mask) = &before.mask
                && name == "random"
            {
                let outside = (0..was.len() as u32).filter(|i| !mask.positions().contains(i));
                let same = |i: u32| was[i as usize].to_bits() == is[i as usize].to_bits();
                assert!(outside.into_iter().all(same), "{name}: {} moved outside", before.name);
            }
        }
        assert!(moved > 0, "{name} learns nothing");
        match name.split(' ').next().unwrap() {
            // Whole tensors rest.
            "half" | "green" => assert!(still > 0, "{name} lets nothing rest"),
            // Every choice of lift may bring other entries.
            "lift" => assert!(moved < all / 2, "{name}: {moved} of {all}"),
            "sara" => assert!(moved <= all / 5 + 1, "{name}: {moved} of {all}"),
            _ => assert!(moved <= all / 10 + 1, "{name}: {moved} of {all}"),
        }
    }
}

#[test]
fn a_form_that_leaves_biases_alone_rests_nothing_of_another() {
    // Its attention has biases, which a sparse form does not choose from.
    let text = "[sparse.random]\ndensity = 0.1\n[full]\nat = \"layers.0.attn_norm\"\n";
    let params: Params = toml::from_str(text).unwrap();
    let bound = params.bind(&model("qwen2"), Seed(5)).unwrap();
    let norm = bound.params.iter().find(|p| p.name.ends_with("input_layernorm.weight")).unwrap();
    let before = numbers(norm);
    run(&bound, &config(), tempfile::tempdir().unwrap().path(), false);
    assert!(numbers(norm).iter().zip(&before).all(|(is, was)| is != was));
}

#[test]
fn two_choices_contradict_each_other() {
    let params: Params = toml::from_str("[half]\n[sparse.lift]\n").unwrap();
    let error = params.choice().map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("both half and sparse choose"), "{error}");
}

#[test]
fn all_entries_in_the_second_round_are_plain_training() {
    // Paper 07: with every entry chosen the second round is full fine-tuning from the start.
    let layers = "layers.*.{attn.{q,k,v,o},mlp.{gate,up,down}}";
    // What another form learns beside them goes back to its start as well.
    for beside in ["", "logits", "layers.0.attn_norm"] {
        let mut every = "[sparse.lottery]\ndensity = 1.0\n".to_string();
        let mut plain = format!("[full]\nat = [\"{layers}\"]\n");
        if !beside.is_empty() {
            every = format!("{every}[full]\nat = \"{beside}\"\n");
            plain = format!("[full]\nat = [\"{layers}\", \"{beside}\"]\n");
        }
        let (every, plain) = (bound(&every), bound(&plain));
        for one in [&every, &plain] {
            run(one, &config(), tempfile::tempdir().unwrap().path(), false);
        }
        assert_eq!(every.params.len(), plain.params.len());
        for plain in &plain.params {
            let every = every.params.iter().find(|p| p.name == plain.name).unwrap();
            assert!(numbers(every) == numbers(plain), "{} beside {beside}", plain.name);
        }
    }
}
