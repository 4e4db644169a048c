/* Bits of a policy's status and actions, plain and scaled, for the observations of observations.h, as lines of text. */

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "observations.h"
#include "policy.h"

static void print_actions(int status, const float *action)
{
    printf("%d", status);
    for (uint32_t i = 0; i < POLICY_ACTION_SIZE; i++) {
        uint32_t bits;
        memcpy(&bits, &action[i], sizeof bits);
        printf(" %08lx", (unsigned long)bits);
    }
    printf("\n");
}

int main(void)
{
    for (uint32_t k = 0; k < sizeof observations / sizeof observations[0]; k++) {
        float observation[POLICY_OBSERVATION_SIZE], action[POLICY_ACTION_SIZE];
        memcpy(observation, observations[k], sizeof observation);
        print_actions(policy_act(observation, action), action);
        print_actions(policy_act_scaled(observation, action), action);
    }
    printf("%d mismatches\n", policy_self_test());
    return 0;
}
