//! Settings without a meaning.

use super::*;

fn params() -> Vec<Param> {
    let shapes = [
        ("layers.0.attn.q.lora_A", [3, 5]),
        ("layers.0.attn.q.lora_B", [4, 3]),
        ("layers.1.mlp.up.lora_A", [150, 130]),
    ];
    shapes.map(|(name, dims)| param(name, &vec![1.0; dims[0] * dims[1]], &dims)).to_vec()
}

#[test]
fn bad_settings_are_refused_by_their_key() {
    let params = params();
    let refused = [
        ("[adamw]\n[sgd]", "train.update: names 2 optimizers"),
        ("[schedule.linear]\n[schedule.cosine]", "train.update.schedule: names 2 schedules"),
        ("[adamw]\nbetas = [0.9, 1.0]", "train.update.adamw.betas"),
        ("[adamw]\nlearning_rate = -1", "train.update.adamw.learning_rate"),
        ("[sgd]\nnesterov = true", "train.update.sgd.nesterov"),
        ("max_grad_norm = -1", "train.update.max_grad_norm"),
        ("clip = \"value\"", "train.update.max_grad_value: is missing"),
        ("max_grad_value = 1", "train.update.max_grad_value: changes nothing"),
        ("clip = \"value\"\nmax_grad_value = 0", "train.update.max_grad_value"),
        ("clip = \"group\"", "train.update.clip: clips by group"),
        ("layer_decay = 1.5", "train.update.layer_decay"),
        ("layer_decay_head_offset = 1", "changes nothing without layer_decay"),
        ("layer_decay = 0.5\nlayer_decay_head_offset = 2", "expected 0 or 1, got 2"),
        ("loraplus_lr_ratio = 0", "train.update.loraplus_lr_ratio"),
        ("loraplus_lr_embedding = 1e-5", "changes nothing without loraplus_lr_ratio"),
        ("[noise]\neta = -1", "train.update.noise.eta"),
        ("[l1]\nlambda = -1", "train.update.l1.lambda"),
        ("[l2_sp]\nalpha = nan", "train.update.l2_sp.alpha"),
        ("[ewc]", "train.update.ewc.fisher: is missing"),
        ("[nuclear]\nmin_dim_rank = 131", "train.update.nuclear: applies to none"),
        ("[sam]\nrho = 0", "train.update.sam.rho"),
        ("[ema]\ndecay = 1", "train.update.ema.decay"),
        ("[swa]\nevery = 0", "train.update.swa.every"),
        ("[ema]\n[swa]", "train.update: names 2 averages (ema, swa)"),
        ("[ema]\n[schedule_free_adamw]", "train.update.ema: schedule_free_adamw keeps"),
        ("[schedule.linear]\nwarmup_steps = 1\nwarmup_ratio = 0.1", "train.update.schedule.linear"),
        ("[schedule.polynomial]\nlr_end = 1.0", "train.update.schedule.polynomial.lr_end"),
        ("[schedule.cosine_with_min_lr]", "exactly one of min_lr and min_lr_rate"),
        ("[schedule.greedy]\nmin_lr = 0.5", "train.update.schedule.greedy"),
        ("[[groups]]\nat = \"layers.7.**\"\nlr_scale = 2", "train.update.groups[0].at"),
        ("[[groups]]\nat = \"**\"", "train.update.groups[0]: changes nothing"),
        (
            "[[groups]]\nat = \"**\"\nlr_scale = 2\n[[groups]]\nat = \"layers.0.**\"\nlr_scale = 1",
            "train.update.groups[1].at: every variable",
        ),
    ];
    for (text, want) in refused {
        let err = Stepper::new(&update(text), &params, &Start::steps(5)).map(|_| ()).unwrap_err();
        assert!(err.to_string().contains(want), "{text}\ngave: {err}");
        assert_eq!(err.exit_code(), 2, "{text}");
    }
    let typo = toml::from_str::<Update>("[schedule.cosin]").unwrap_err().to_string();
    assert!(typo.contains("cosin") && typo.contains("cosine"), "{typo}");
    assert!(toml::from_str::<Update>("[adamw]\nlr = 1").is_err());
}

#[test]
fn what_the_caller_has_to_know_is_not_the_users_fault() {
    let params = params();
    for (text, want) in [
        ("[l1]", "the size of the model is not known"),
        ("[ewc]\nfisher = \"f\"", "train.update.ewc.fisher: the file was not read"),
        ("layer_decay = 0.9", "is in layer 0 of a model of 0 layers"),
    ] {
        let err = Stepper::new(&update(text), &params, &Start::steps(5)).map(|_| ()).unwrap_err();
        assert!(err.to_string().contains(want) && err.exit_code() == 1, "{text}\ngave: {err}");
    }
}
