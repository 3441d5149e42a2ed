"""Conceptual questions in the manner of questions asked about methods papers: (name, topics, question, answer, source).
Written for this repository.

Every source is a real and well-known reference, or the name of the textbook topic; `generate.py` appends it to the answer.
"""

CONCEPTS = [
    ("cuped_idea", ["CUPED", "variance reduction"],
     "What is the core idea of CUPED?",
     "CUPED subtracts from each user's metric the part that behaviour before the experiment predicts. Since assignment is random, this"
     " part has the same expectation in both groups, so the effect stays unbiased while the variance falls.",
     "Deng et al. 2013, CUPED"),
    ("cuped_covariate", ["CUPED"],
     "Which covariate should one choose for CUPED, and what must be avoided?",
     "Choose one that correlates strongly with the metric, usually the same metric in a period before the start. Avoid anything that "
     "the treatment can change, because adjusting for it would bias the effect.",
     "Deng et al. 2013, CUPED"),
    ("cuped_new_users", ["CUPED"],
     "How does CUPED treat users who have no history before the experiment?",
     "They carry no information in the covariate. One can give them a constant value together with an indicator of being new, which "
     "keeps the estimate unbiased. Their share limits how much variance can be removed.",
     "Deng et al. 2013, CUPED"),
    ("cuped_theta", ["CUPED", "regression"],
     "How is the coefficient theta in CUPED chosen, and why is it optimal?",
     "Theta is the covariance of metric and covariate over the variance of the covariate, which is the regression slope. It minimises "
     "the variance of the adjusted mean among all linear adjustments with that covariate.",
     "Deng et al. 2013, CUPED"),
    ("regression_adjustment", ["regression adjustment"],
     "Is linear regression adjustment safe in a randomised experiment when the linear model is wrong?",
     "Yes, in large samples, if centred covariates are interacted with the treatment. Then the adjusted estimate is consistent and "
     "asymptotically never less precise than the simple difference, whether or not the model is true.",
     "Lin 2013"),
    ("machine_learning_adjustment", ["variance reduction", "machine learning"],
     "Can machine learning predictions reduce the variance of an online experiment without adding bias?",
     "Yes. Predict the metric from data before the experiment, with cross-fitting so that no user is predicted by a model trained on "
     "that user, and use the prediction as a regression covariate. Bad predictions cost precision gains, not validity.",
     "Guo et al. 2021, MLRATE"),
    ("stratified_sampling", ["stratification", "variance reduction"],
     "When does stratification help in online experiments, and how does it compare with adjustment afterwards?",
     "It helps when strata explain much of the metric's variance. Post-stratification and CUPED reach nearly the same gain in large "
     "samples and are easier to run than stratified assignment.",
     "Xie and Aurisset 2016"),
    ("always_valid_p_values", ["sequential testing", "peeking"],
     "What are always valid p-values?",
     "They are p-values that keep their error guarantee at every moment, even when the user decides to stop by looking at them. They "
     "can be built from a mixture sequential probability ratio test.",
     "Johari et al. 2017, Peeking at A/B Tests"),
    ("confidence_sequences", ["sequential testing"],
     "How does a confidence sequence differ from a confidence interval?",
     "A confidence sequence covers the parameter at all sample sizes at once with the promised probability. So one may look and stop "
     "at any time. The price is a wider interval at each fixed sample size.",
     "Howard et al. 2021, confidence sequences"),
    ("mixture_sprt", ["sequential testing"],
     "Why does the mixture sequential probability ratio test use a mixture over effects?",
     "The likelihood ratio needs an alternative, and the true effect is unknown. Averaging the ratio over a distribution of effects "
     "keeps it a martingale with mean one under the null, so large values stay rare.",
     "Robbins 1970"),
    ("wald_sprt", ["sequential testing"],
     "What does the sequential probability ratio test of Wald promise?",
     "It compares the likelihood ratio with two bounds after each observation and stops at the first crossing. For two simple "
     "hypotheses with independent data, no test with the same error rates needs fewer observations on average.",
     "Wald 1945"),
    ("obrien_fleming", ["group sequential"],
     "How do the boundaries of O'Brien and Fleming differ from those of Pocock?",
     "Pocock uses the same critical value at every look. O'Brien and Fleming are very strict early and nearly at the usual level at "
     "the end, so the final test loses little power.",
     "O'Brien and Fleming 1979"),
    ("alpha_spending", ["group sequential"],
     "What problem do alpha spending functions solve?",
     "Classic group sequential plans fix the number and times of looks. A spending function says how much error may be used up by each"
     " share of the information, so the looks need not be planned exactly.",
     "Lan and DeMets 1983"),
    ("peeking_inflation", ["peeking"],
     "Why does continuous monitoring with a fixed-sample test inflate the false positive rate?",
     "Under the null the z statistic wanders, and with endless looks it crosses any fixed line with probability one. Each extra look "
     "adds another chance to stop at a lucky peak.",
     "Armitage, McPherson and Rowe 1969"),
    ("benjamini_hochberg_steps", ["false discovery rate"],
     "How does the Benjamini-Hochberg procedure work?",
     "Sort the p-values and find the largest rank k whose p-value is at most k times q over m. Reject the k smallest. For independent "
     "tests the false discovery rate then stays at or below q.",
     "Benjamini and Hochberg 1995"),
    ("dependent_tests", ["false discovery rate"],
     "Does Benjamini-Hochberg still control the false discovery rate when the tests depend on each other?",
     "Under positive regression dependence it does. For arbitrary dependence, divide the level by the harmonic sum of 1 to m, which is"
     " always safe but costs power.",
     "Benjamini and Yekutieli 2001"),
    ("online_false_discoveries", ["false discovery rate", "online testing"],
     "How can a platform control false discoveries when experiments arrive one after another without end?",
     "Online methods such as alpha-investing keep a budget of error. Each test spends a part of it, and each discovery earns some "
     "back, so the level depends only on the past.",
     "Foster and Stine 2008, alpha-investing"),
    ("type_m_errors", ["power", "effect size"],
     "What are type S and type M errors?",
     "Given a significant result, a type S error is a wrong sign and a type M error is an exaggerated size. Both become common when "
     "power is low, so design calculations should report them.",
     "Gelman and Carlin 2014"),
    ("rule_of_sixteen", ["power", "sample size"],
     "Where does the factor 16 in the rule for the sample size per arm come from?",
     "For 80 percent power at the two-sided 5 percent level, the factor is 2 times the square of 1.96 + 0.84, which is about 15.7. "
     "Rounding up to 16 gives the handy rule.",
     "Lehr 1992, sixteen s-squared over d-squared"),
    ("delta_method", ["delta method", "ratio metrics"],
     "How does the delta method give the variance of a ratio metric?",
     "It replaces the ratio by its linear approximation around the two means. The variance then follows from the variances of "
     "numerator and denominator and their covariance, all measured at the unit of randomisation.",
     "Deng, Knoblich and Lu 2018"),
    ("quantile_metrics", ["quantiles"],
     "Why are quantile metrics such as the 95th percentile of latency harder to analyse?",
     "Their variance depends on the density at the quantile, and requests of one user are correlated. One takes an interval for the "
     "share of requests below the quantile, with a clustered variance, and maps its ends back, or bootstraps whole users.",
     "Deng, Knoblich and Lu 2018"),
    ("cluster_bootstrap", ["bootstrap", "clustering"],
     "How should one bootstrap when each user contributes many observations?",
     "Resample users, not observations, and take all data of each drawn user. Resampling single observations would break the "
     "dependence within users and usually make the interval too narrow.",
     "textbook topic, cluster bootstrap"),
    ("srm_test", ["sample ratio mismatch"],
     "How is a sample ratio mismatch detected?",
     "Compare the observed counts per arm with the planned split by a chi-square test. Since the check is run for every experiment, a "
     "strict level is used, and a failure stops the analysis.",
     "Fabijan et al. 2019, sample ratio mismatch"),
    ("srm_causes", ["sample ratio mismatch"],
     "What typically causes a sample ratio mismatch, and why does it bias the results?",
     "Common causes are faulty assignment, redirects, lost logs and filters that act differently by arm. The missing users are rarely "
     "random, so the remaining groups differ in more than the treatment.",
     "Fabijan et al. 2019, sample ratio mismatch"),
    ("switchback_design", ["switchback", "interference"],
     "When is a switchback experiment preferred to randomising users?",
     "When users share one market, so that treating some affects the others, for example in ride pricing. The whole market is switched"
     " between treatments over time, and periods are the units.",
     "Bojinov, Simchi-Levi and Zhao 2023"),
    ("switchback_carryover", ["switchback"],
     "How does carryover affect switchback experiments?",
     "The effect of one period leaks into the next and biases the comparison. Longer periods or dropping the start of each period "
     "reduce the leak, but leave fewer units and more variance.",
     "Bojinov, Simchi-Levi and Zhao 2023"),
    ("interference", ["interference"],
     "What is the stable unit treatment value assumption, and when does it fail?",
     "It says that a unit's outcome depends only on its own treatment and that the treatment has one version. It fails when units "
     "interact, as in social networks, auctions and markets with limited supply.",
     "Rubin 1980"),
    ("graph_clusters", ["interference", "networks"],
     "How does graph cluster randomisation reduce interference bias?",
     "It splits the network into clusters with few edges between them and assigns whole clusters. Most neighbours then share a user's "
     "treatment. The bias falls while the variance grows, because there are fewer units.",
     "Ugander et al. 2013"),
    ("exposure_mapping", ["interference"],
     "What does an exposure mapping do in the analysis of experiments with interference?",
     "It sums up the whole assignment by the exposure that matters to each unit, such as the share of treated friends. Effects are "
     "then estimated by weighting with the known exposure probabilities.",
     "Aronow and Samii 2017"),
    ("two_stage_design", ["interference"],
     "How can a two-stage design separate direct effects from spillovers?",
     "First groups are randomised to a high or low share of treatment, then units within each group. Untreated units in the two kinds "
     "of groups differ only by spillover, which gives the indirect effect.",
     "Hudgens and Halloran 2008"),
    ("epsilon_greedy", ["bandits"],
     "What is the weakness of the epsilon-greedy bandit?",
     "It explores a fixed share of the time and picks among arms blindly, so even a clearly bad arm is tried forever. With constant "
     "epsilon the regret therefore grows linearly.",
     "Sutton and Barto 2018"),
    ("thompson_sampling", ["bandits", "Bayesian"],
     "How does Thompson sampling balance exploring and exploiting?",
     "It draws one plausible value per arm from the posterior and plays the best draw. Arms that are uncertain are sometimes drawn "
     "high and get tried, while arms known to be bad fade out.",
     "Thompson 1933"),
    ("upper_confidence_bound", ["bandits"],
     "What does optimism mean in the UCB algorithm?",
     "Each arm is valued at its mean plus a bonus that shrinks as the arm is played. Playing the highest value either earns a lot or "
     "teaches a lot, and the regret grows only logarithmically.",
     "Auer, Cesa-Bianchi and Fischer 2002"),
    ("inference_after_bandits", ["bandits", "bias"],
     "Why are sample means biased after data were collected by a bandit?",
     "An arm that looks bad by chance is played less and cannot recover, so its mean stays too low. Weighting by the recorded "
     "assignment probabilities removes the bias, at the cost of more variance.",
     "Nie et al. 2018"),
    ("bandit_or_test", ["bandits", "design"],
     "Should one run a bandit or a classic A/B test?",
     "A bandit earns more during the trial and suits short-lived choices such as headlines. A classic test gives cleaner estimates, "
     "shows effects on many metrics, and copes better with delayed outcomes.",
     "textbook topic, bandits and experiments"),
    ("inverse_propensity", ["off-policy evaluation"],
     "How can logged data evaluate a new policy that was never deployed?",
     "Weight each logged reward by the new policy's probability of the action over the logged one. The estimate is unbiased if those "
     "probabilities are known and positive, but small ones inflate the variance.",
     "Horvitz and Thompson 1952"),
    ("doubly_robust", ["off-policy evaluation", "causal inference"],
     "Why is the doubly robust estimator called doubly robust?",
     "It combines an outcome model with propensity weights. If either the model or the propensities are right, the estimate is "
     "consistent; only when both are wrong does it fail.",
     "Robins, Rotnitzky and Zhao 1994"),
    ("propensity_score", ["causal inference"],
     "What is a propensity score good for, and what can it not do?",
     "It is the probability of treatment given the covariates, and comparing units with equal scores balances those covariates. It "
     "cannot balance anything that was not measured, unlike randomisation.",
     "Rosenbaum and Rubin 1983"),
    ("local_average_effect", ["noncompliance", "instrumental variables"],
     "What does the instrumental variable estimate mean when some users ignore their assignment?",
     "It is the effect on compliers, those who take the treatment because they were assigned to it. It equals the effect of assignment"
     " over the difference in uptake, given exclusion and no defiers.",
     "Imbens and Angrist 1994"),
    ("parallel_trends", ["difference in differences"],
     "What assumption does difference in differences rest on?",
     "Parallel trends: without the treatment, both groups would have changed by the same amount. It cannot be proved, but similar "
     "movement over several earlier periods makes it more believable.",
     "textbook topic, difference in differences"),
    ("serial_correlation", ["difference in differences"],
     "Why are naive standard errors in difference in differences studies with many periods misleading?",
     "Outcomes of one group are correlated over time, so the periods are not independent evidence. Cluster the errors by group or "
     "average the periods into before and after.",
     "Bertrand, Duflo and Mullainathan 2004"),
    ("synthetic_control", ["causal inference"],
     "How does the synthetic control method build its comparison?",
     "It takes a weighted mix of untreated regions that follows the treated region closely before the change. The gap afterwards "
     "estimates the effect, and placebo runs on other regions show how unusual it is.",
     "Abadie, Diamond and Hainmueller 2010"),
    ("causal_forest", ["heterogeneous effects"],
     "What does honesty mean in a causal forest?",
     "Each tree uses one part of its sample to choose the splits and another part to estimate effects in the leaves. This removes the "
     "bias from picking flattering splits and allows valid intervals.",
     "Wager and Athey 2018"),
    ("surrogate_metrics", ["surrogates", "long-term effects"],
     "When can a short-term surrogate stand in for a long-term outcome?",
     "When the treatment acts on the long-term outcome only through the surrogate, and the link between them is stable. Both must be "
     "argued, since the experiment alone cannot prove them.",
     "Prentice 1989"),
    ("rerandomisation", ["design"],
     "Is it legitimate to redraw the assignment until the covariates are balanced?",
     "Yes, if the balance rule is fixed in advance and the analysis takes it into account, for example by a permutation test with the "
     "same rule. Ignoring it makes intervals wider than needed.",
     "Morgan and Rubin 2012"),
    ("intraclass_correlation", ["cluster randomisation"],
     "What does the intraclass correlation tell the designer of a cluster randomised trial?",
     "It is the share of the variance that lies between clusters. Even a small value hurts when clusters are large, so adding clusters"
     " helps more than adding people to each cluster.",
     "Kish 1965, Survey Sampling"),
    ("interleaving", ["ranking", "interleaving"],
     "Why is interleaving more sensitive than an A/B test for comparing two rankings?",
     "Every user sees a mix of both rankings, and clicks show which one is preferred. Users are their own control, so the large "
     "differences between users drop out.",
     "Chapelle et al. 2012, interleaved search evaluation"),
    ("permutation_test", ["randomisation inference"],
     "What does a permutation test assume in a randomised experiment?",
     "Only that the assignment was random in the known way. Under the sharp null no outcome depends on the assignment, so redrawing it"
     " gives the exact distribution of any statistic.",
     "Fisher 1935"),
    ("overlapping_experiments", ["infrastructure"],
     "How can a company run many experiments on the same users at the same time?",
     "Parameters are split into layers, and each layer assigns users by an independent hash. Experiments in different layers then "
     "cross at random, so each is averaged evenly over the others.",
     "Tang et al. 2010, overlapping experiments"),
    ("empirical_bayes_shrinkage", ["empirical Bayes"],
     "Why do shrinkage estimates predict the effects of many experiments better than the raw estimates?",
     "Raw estimates add noise to the true effects, so extremes are mostly overstated. Pulling all of them toward the common mean, more"
     " so for noisy ones, lowers the total squared error.",
     "James and Stein 1961"),
]
