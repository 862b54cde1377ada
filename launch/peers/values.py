"""Values of other projects' settings that our settings of the same meaning name otherwise.

A line is `field: names = ours`, where `-` begins what is said of those that there are not.
"""

TABLE = """
algorithm.name: reinforce, reinforce++, reinforce_plus_plus, reinforce_pp, reinforcepp = algorithm={name: grpo, advantage: reinforce_pp}
algorithm.name: reinforce_baseline, reinforce++_baseline, reinforce_plus_plus_baseline, reinforce_pp_baseline = algorithm={name: grpo, advantage: reinforce_pp_baseline}
algorithm.name: rloo, leave_one_out = algorithm={name: grpo, advantage: leave_one_out}
algorithm.name: dr_grpo, drgrpo, grpo_done_right = algorithm={name: grpo, normalize_std: false, aggregation: constant}
algorithm.name: dapo = algorithm={name: grpo, clip_high: 0.28, dynamic_sampling: true}
algorithm.name: gspo = algorithm={name: grpo, loss: gspo, aggregation: sequence}
algorithm.name: cispo, minirl = algorithm={name: grpo, loss: cispo, cispo_max_ratio: 5}
algorithm.name: sapo = algorithm={name: grpo, loss: sapo}
algorithm.name: group_norm, bnpo, grpo_lora = algorithm={name: grpo}
algorithm.name: gae, ppov2, ppo_ray, actor_critic = algorithm={name: ppo}
algorithm.name: sigmoid, ipo, hinge, nca, bco, sppo, aot, aot_unpaired, apo_zero, apo_down, discopop, sigmoid_norm, simpo, cpo, orpo, kto = algorithm={name: dpo, loss: NAME}
algorithm.name: robust, exo = algorithm={name: dpo, loss: NAME, label_smoothing: 0.1}
algorithm.name: cdpo = algorithm={name: dpo, label_smoothing: 0.1}
algorithm.name: slic = algorithm={name: dpo, loss: hinge}
algorithm.name: rm, reward_model, reward_modeling, reward_modelling, bradley_terry, bt = algorithm={name: reward}
algorithm.name: finetune, fine_tuning, finetuning, supervised, pretrain, clm, lm, completion = algorithm={name: sft}
algorithm.name: bi_encoder, biencoder, sentence_transformer, retriever, dense = algorithm={name: embedding}
algorithm.name: cross_encoder, crossencoder, rerank = algorithm={name: reranker}
algorithm.name: online_dpo, nash_md, xpo, remax, opo, prime, spin, rest, iterative_sft = - algorithm={name: grpo} learns online
algorithm.name: gkd, distillation, minillm, kd, opd = - distillation of language models is not supported
algorithm.name: prm, process_reward, stepwise = - process rewards are not supported: algorithm={name: reward}
policy.optimizer.name: adamw_torch, adamw_torch_fused, adamw_hf, fusedadam, fused_adam, adamw_apex_fused, adamw_8bit, adamw_bnb_8bit, paged_adamw, paged_adamw_8bit, paged_adamw_32bit, adamw_torch_8bit, cpuadam, adamw_fused = adamw
policy.optimizer.name: lion, lion_8bit, lion_32bit, paged_lion_8bit, adafactor, muon, shampoo, soap, galore_adamw, adagrad, rmsprop, lomo, ademamix, schedule_free_adamw, came_pytorch, stable_adamw, optimi_adamw = - adamw, adam and sgd are supported
policy.optimizer.schedule: cosine_with_restarts, cosine_warmup_with_min_lr, cosine_warmup, cosine_annealing, rex, one_cycle = cosine or cosine_with_min_lr
policy.optimizer.schedule: polynomial, inverse_sqrt, reduce_lr_on_plateau, warmup_stable_decay, wsd, exponential, linear_with_warmup = linear, cosine or constant_with_warmup
policy.optimizer.schedule: constant_with_warm_up, none = constant or constant_with_warmup
model.dtype: bfloat16, torch.bfloat16, bfloat = bf16
model.dtype: float32, torch.float32, float, full, single = fp32
model.dtype: float16, fp16, half, torch.float16, fp8, int8, auto, mixed = - bf16 and fp32 are supported
model.attention: sdpa, eager, torch, math, packed, xformers, flex_attention, sdp = packed_sdpa or auto
model.attention: flash, flash_attn, fa2, flash_attention, flash_attention_3, flash_attention2, flash_attn_2, fa3 = flash_attention_2 or auto
model.quantize: 4bit, int4, bnb, bitsandbytes, true, fp4, qlora, 4 = nf4
model.quantize: 8bit, int8, fp8, gptq, awq, hqq, false, 8 = - nf4 is supported, null is none
model.init.family: qwen, qwen3, gpt2, mistral, gemma, llama3 = qwen2 or llama
model.lora.targets: all, linear, all_linear = all-linear
algorithm.advantage: grpo, group_norm, group_mean, group_relative, grpo_vectorized = group
algorithm.advantage: rloo, rloo_vectorized, loo = leave_one_out
algorithm.advantage: reinforce, reinforce++, reinforce_plus_plus, reinforcepp = reinforce_pp
algorithm.advantage: reinforce_baseline, reinforce++_baseline, reinforce_plus_plus_baseline = reinforce_pp_baseline
algorithm.advantage: dr_grpo, grpo_passk, opo = group with algorithm.normalize_std: false
algorithm.advantage: gae, remax = - gae is algorithm={name: ppo}
algorithm.loss: ppo, vanilla, grpo, bnpo, dapo, token = clip
algorithm.loss: dr_grpo = clip with algorithm.aggregation: constant
algorithm.loss: gpg, clip_cov, kl_cov, geo_mean, gmpo, luspo = clip, gspo, cispo or sapo
algorithm.loss: sequence = gspo
algorithm.loss.N.name: dpo, cdpo = sigmoid
algorithm.loss.N.name: exo_pair = exo
algorithm.loss.N.name: nca_pair = nca
algorithm.loss.N.name: bco_pair = bco
algorithm.loss.N.name: sppo_hard = sppo
algorithm.loss.N.name: aot_pair = aot
algorithm.loss.N.name: kto_pair = kto
algorithm.kl_estimator: kl, forward, abs = k1
algorithm.kl_estimator: mse, k2+ = k2
algorithm.kl_estimator: low_var_kl, k3+, full = k3
algorithm.kl_in: true, kl_loss, grpo = loss
algorithm.aggregation: token-mean, token_mean, dapo, bnpo = token
algorithm.aggregation: seq-mean-token-mean, seq_mean_token_mean, seq-mean, grpo, sample = sequence
algorithm.aggregation: seq-mean-token-sum, seq-mean-token-sum-norm, dr_grpo, sum = constant
algorithm.train_on: completion, assistant, assistants, output, outputs = completions
algorithm.train_on: turn, last_turn, mask_history, final = last
algorithm.train_on: inputs, full, everything, prompt = all
algorithm.reference: precompute, precomputed_logprobs = precomputed
data.overlong: error_on_overlong, raise = error
data.overlong: truncation, cut, left, right, middle = truncate
cluster.placement: colocate, colocated, colocate_all, hybrid = shared
cluster.placement: server, disaggregated, spread = split or separate
rollout.transfer.backend: gloo_cpu, ray, cpu = gloo
"""
