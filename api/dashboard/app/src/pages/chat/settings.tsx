// Who answers, and how.

import { useState } from "preact/hooks";
import { typed, type ChatModel } from "./choice";
import type { Settings } from "./store";

interface SettingsFormProps {
  settings: Settings;
  models: readonly ChatModel[];
  model: ChatModel | undefined;
  change: (part: Partial<Settings>) => void;
}

export function SettingsForm({ settings, models, model, change }: SettingsFormProps) {
  const nodes = model?.nodes ?? [];
  const names = models.map(({ name }) => name);
  return (
    <div class="stack">
      <label class="field">
        <span>Model</span>
        <select class="input" value={settings.model} onChange={(event) => change({ model: event.currentTarget.value, node: "" })}>
          {!settings.model && <option value="">none</option>}
          {settings.model && !names.includes(settings.model) && <option value={settings.model}>{settings.model} (not there now)</option>}
          {models.map(({ name, loaded }) => (
            <option key={name} value={name}>
              {name}
              {loaded ? " · loaded" : ""}
            </option>
          ))}
        </select>
      </label>
      <label class="field">
        <span>Node</span>
        <select class="input" value={settings.node} onChange={(event) => change({ node: event.currentTarget.value })}>
          <option value="">the one that is fastest</option>
          {settings.node && !nodes.includes(settings.node) && <option value={settings.node}>{settings.node} (not there now)</option>}
          {nodes.map((name) => (
            <option key={name} value={name}>
              {name}
            </option>
          ))}
        </select>
      </label>
      <label class="field">
        <span>System prompt</span>
        <textarea
          class="input"
          rows={3}
          value={settings.system}
          onInput={(event) => change({ system: event.currentTarget.value })}
        />
      </label>
      <div class="sampling">
        <NumberField name="Temperature" value={settings.temperature} low={0} high={2} step="0.1" onValue={(temperature) => change({ temperature })} />
        <NumberField name="Top p" value={settings.topP} low={0.01} high={1} step="0.05" onValue={(topP) => change({ topP })} />
        <NumberField name="Most tokens" value={settings.maxTokens} low={1} high={1_000_000} whole onValue={(maxTokens) => change({ maxTokens })} />
        <NumberField name="Seed" value={settings.seed} low={0} high={2 ** 31 - 1} whole onValue={(seed) => change({ seed })} />
      </div>
      <p class="muted small">What is empty is as the model's file has it.</p>
    </div>
  );
}

interface NumberFieldProps {
  name: string;
  value: number | null;
  low: number;
  high: number;
  step?: string;
  whole?: boolean;
  onValue: (value: number | null) => void;
}

function NumberField({ name, value, low, high, step = "1", whole = false, onValue }: NumberFieldProps) {
  const [text, setText] = useState(value === null ? "" : String(value));
  return (
    <label class="field">
      <span>{name}</span>
      <input
        class="input"
        type="number"
        inputMode="decimal"
        min={low}
        max={high}
        step={step}
        placeholder="default"
        value={text}
        onInput={(event) => {
          setText(event.currentTarget.value);
          onValue(typed(event.currentTarget.value, low, high, whole));
        }}
        onBlur={() => {
          const kept = typed(text, low, high, whole);
          setText(kept === null ? "" : String(kept)); // what is sent is what is seen
        }}
      />
    </label>
  );
}
