// How a model would be split over several nodes, as a picture: `mesh plan`.

import { useEffect, useState } from "preact/hooks";
import { getJson, told } from "../../api/client";
import type { Plan, Plans } from "../../api/types";
import { bytes, count, duration, plural, rate } from "../../format";
import { Meter } from "../../ui/parts";

export function PlanPicture({ model }: { model: string }) {
  const [plan, setPlan] = useState<Plan | null>(null);
  const [problem, setProblem] = useState("");
  useEffect(() => {
    const control = new AbortController();
    getJson<Plans>(`/api/mesh/plans?model=${encodeURIComponent(model)}`, control.signal)
      .then(({ plans }) => setPlan(plans[0] ?? null))
      .catch((error: unknown) => {
        if (!control.signal.aborted) setProblem(told(error));
      });
    return () => control.abort();
  }, [model]);
  if (problem || plan?.error) return <p class="plan-problem">{problem || plan?.error}</p>;
  if (!plan) return <p class="muted">Reckoning …</p>;
  const split = plan.split ?? null;
  const fits = plan.fits ?? [];
  const layers = split?.nodes.reduce((sum, share) => sum + share.layers, 0) ?? 0;
  return (
    <section class="plan" aria-label={`Plan for ${model}`}>
      <p>
        In one piece it needs <strong>{bytes(plan.need_bytes)}</strong>
        {fits.length ? <> and fits {fits.join(", ")}</> : <>, which no node has alone</>}
        {plan.whole_tokens_per_s ? <>, about {rate(plan.whole_tokens_per_s)} there</> : null}.
      </p>
      {split && (
        <>
          <p>
            Over {plural(split.nodes.length, "node")}
            {plan.loaded ? ", and loaded so" : ""}: about <strong>{rate(split.tokens_per_s)}</strong>, loaded in about{" "}
            {duration(split.load_s)}.
          </p>
          <div class="layers" role="img" aria-label={split.nodes.map((share) => `${share.node}: ${plural(share.layers, "layer")}`).join(", ")}>
            {split.nodes.map((share, index) => (
              <div
                key={index}
                class={`layer series-${index % 6}`}
                style={{ flexGrow: Math.max(share.layers, layers / 40) }}
                title={`${share.node}: ${plural(share.layers, "layer")}, ${bytes(share.weight_bytes)} of weights`}
              >
                <span>{share.node}</span>
                <small>{plural(share.layers, "layer")}</small>
              </div>
            ))}
          </div>
          <ul class="shares">
            {split.nodes.map((share, index) => (
              <li key={index}>
                <span class={`swatch series-${index % 6}`} aria-hidden="true" />
                <strong>{share.node}</strong>
                <span class="muted small">
                  {share.head ? "head" : `${duration(share.round_trip_s)} away`}
                  {share.cached ? ", has had these weights before" : ""}
                </span>
                <span class="share-memory">
                  <span class="small">
                    {bytes(share.memory_bytes)} of {bytes(share.free_bytes)} free
                  </span>
                  <Meter
                    share={share.free_bytes > 0 ? share.memory_bytes / share.free_bytes : 1}
                    label={`Memory of ${share.node} that this would take`}
                  />
                </span>
              </li>
            ))}
          </ul>
        </>
      )}
      {(plan.why ?? []).length > 0 && (
        <ul class="plan-why muted small">
          {(plan.why ?? []).map((sentence, index) => (
            <li key={index}>{sentence}</li>
          ))}
        </ul>
      )}
      {plan.slots ? (
        <p class="muted small">
          With {plural(plan.slots, "slot")} of {count(plan.context_tokens)} tokens.
        </p>
      ) : null}
    </section>
  );
}
